from copy import deepcopy
from functools import partial

import pytest
import torch

from sparsedet.common.config import dump, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models import FasterRCNNConfig, FPNConfig, MobileNetV2Config, ResNetConfig
from sparsedet.detection.models.roi_head import RoIHeadConfig
from sparsedet.detection.models.roi_post_processing import RoIPostProcessing
from sparsedet.detection.models.rpn import RPNConfig
from sparsedet.detection.models.sampling import BalancedSampler
from sparsedet.detection.structures import Target

SMALL = FasterRCNNConfig(
    backbone=ResNetConfig(width=16, levels=(2, 3, 4, 5)),
    neck=FPNConfig(channels=16, extra="pool", norm="none"),
    rpn=RPNConfig(train_proposals=60, test_proposals=50),
    roi_head=RoIHeadConfig(channels=32, pool_size=3),
)
SIZE = (64, 96)
TERMS = ["rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss"]
BOX = (10.0, 12.0, 50.0, 44.0)


def make_target(boxes=(BOX,), ignore=(), image_size=SIZE):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Target(boxes, torch.arange(len(boxes)) % 3, torch.tensor(ignore).reshape(-1, 4), image_size)


def changed(config, part, **options):
    """Return `config` with other options of one of its parts."""
    return config.model_copy(update={part: getattr(config, part).model_copy(update=options)})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build(num_classes=3)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [
    SMALL,
    changed(SMALL, "roi_head", num_levels=2),
    SMALL.model_copy(update={"backbone": MobileNetV2Config(width_mult=0.25), "neck": FPNConfig(channels=16)}),
], ids=["resnet18", "two_roi_levels", "mobilenet_v2"])  # fmt: skip
def test_every_layer_is_trained(config, images):
    torch.manual_seed(0)
    model = config.build(num_classes=5)
    outputs = model(images)
    finest = model.backbone.strides[0]
    for level, (x, output) in enumerate(zip(outputs.features, outputs.rpn, strict=True)):
        size = tuple(-(-side // (finest * 2**level)) for side in SIZE)
        assert x.shape == (2, 16, *size)
        assert output.cls_logits.shape == (2, 3, *size)
        assert output.box_deltas.shape == (2, 12, *size)
    losses = model.losses(outputs, [make_target(), make_target()])
    assert list(losses) == TERMS
    assert all(loss.isfinite() and loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)
    assert model.stride == 32


def test_training_lowers_the_loss(model, images):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(12):
        losses = model.losses(model(images), [make_target(), make_target(((60.0, 5.0, 90.0, 60.0), BOX))])
        total = sum(losses.values())
        assert total.isfinite()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]
    found = model.eval().detect(model(images), [SIZE, SIZE])
    assert all(detections.scores.isfinite().all() for detections in found)


def test_module_names(model):
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    assert {"backbone.conv1", "neck.lateral.2.conv", "neck.output.5.conv"} <= names
    assert {name for name in names if not name.startswith(("backbone.", "neck."))} == {
        "rpn.conv", "rpn.cls_pred", "rpn.box_pred",
        "box_head.fc1", "box_head.fc2", "box_head.cls_pred", "box_head.box_pred",
    }  # fmt: skip


EVERYWHERE = (0.0, 0.0, 96.0, 64.0)


@pytest.mark.parametrize(("first", "second", "zero_terms"), [
    (make_target(), make_target(()), ()),
    (make_target(()), make_target(()), ("rpn_box_loss", "box_loss")),
    (make_target(((5.0, 5.0, 5.0, 20.0),)), make_target(()), ("rpn_box_loss", "box_loss")),  # no area
    (make_target((), (EVERYWHERE,)), make_target(()), ("rpn_box_loss", "box_loss")),
    (make_target((), (EVERYWHERE,)), make_target((), (EVERYWHERE,)), ("rpn_box_loss", "cls_loss", "box_loss")),
    (make_target((BOX,), (EVERYWHERE,)), make_target((BOX,), (EVERYWHERE,)), ()),
], ids=["one empty", "both empty", "degenerate", "one ignored", "both ignored", "boxes in ignored"])  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_images_without_boxes_give_finite_losses(model, images, first, second, zero_terms, legacy):
    model = SMALL.model_copy(update={"legacy_boxes": legacy}).build(3)
    losses = model.losses(model(images), [first, second])
    assert [name for name, loss in losses.items() if loss == 0] == list(zero_terms)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("up_compat", [False, True])
def test_no_proposals_at_all(model, images, up_compat):
    outputs = model(images)
    away = [output._replace(box_deltas=output.box_deltas - 1e4) for output in outputs.rpn]
    outputs = outputs._replace(rpn=tuple(away))
    losses = model.losses(outputs, [make_target(()), make_target(())])
    assert losses["cls_loss"] == losses["box_loss"] == 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with_box = model.losses(outputs, [make_target(()), make_target()])
    assert with_box["cls_loss"] > 0  # the true box itself is a region
    model.config = changed(SMALL, "roi_head", up_compat=up_compat)
    assert [len(detections.scores) for detections in model.eval().detect(outputs, [SIZE, SIZE])] == [0, 0]


def test_ignored_anchors_and_regions_give_no_gradient(model, images):
    # the left half is ignored; regions of the right half are pooled from there but for the last cell
    ignore = ((0.0, 0.0, 48.0, 64.0),)
    outputs = model(images)
    leaves = [output.cls_logits.detach().requires_grad_() for output in outputs.rpn]
    replaced = [output._replace(cls_logits=leaf) for output, leaf in zip(outputs.rpn, leaves, strict=True)]
    model.losses(outputs._replace(rpn=tuple(replaced)), [make_target((), ignore)] * 2)["rpn_cls_loss"].backward()
    assert any(leaf.grad.any() for leaf in leaves)
    for leaf, anchors in zip(leaves, model.rpn.anchors(outputs.rpn), strict=True):
        inside = anchors[:, 2] <= 48  # the whole width, and more than half of the height as far as it is in the image
        inside &= (anchors[:, 1] >= 0) & (anchors[:, 0] >= 0) & (anchors[:, 3] <= 64)
        gradient = leaf.grad.permute(0, 2, 3, 1).reshape(2, -1)
        assert not gradient[:, inside].any()


def test_loss_weights_and_samplers_are_those_of_the_configuration(images):
    def losses(config):
        torch.manual_seed(0)
        model = config.build(3)
        torch.manual_seed(1)
        return model.losses(model(images), [make_target(), make_target()])

    once = losses(SMALL)
    weighted = changed(
        changed(SMALL, "rpn", cls_weight=2.0, box_weight=3.0), "roi_head", cls_weight=4.0, box_weight=5.0
    )
    for (name, loss), factor in zip(losses(weighted).items(), (2, 3, 4, 5), strict=True):
        torch.testing.assert_close(loss, factor * once[name])
    fewer = losses(changed(SMALL, "roi_head", sampler=BalancedSampler(batch_size=4, positive_share=0.25)))
    assert fewer["rpn_cls_loss"] == once["rpn_cls_loss"]
    assert fewer["box_loss"] != once["box_loss"]


def test_training_and_inference_use_their_own_numbers_of_proposals(model, images, monkeypatch):
    seen = []
    proposals = model.rpn.proposals
    monkeypatch.setattr(model.rpn, "proposals", lambda *arguments: seen.append(arguments) or proposals(*arguments))
    model.config = changed(SMALL, "rpn", train_top_n=31, test_top_n=21, train_proposals=30, test_proposals=20)
    outputs = model(images)
    sizes = [(64, 90), (60, 96)]
    model.losses(outputs, [make_target(image_size=size) for size in sizes])
    model.eval().detect(outputs, sizes)
    assert [call[1:] for call in seen] == [(sizes, 31, 30), (sizes, 21, 20)]


def test_autocast_changes_the_network_but_not_the_precision_of_losses_and_boxes(model, images):
    targets = [make_target(), make_target()]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
    assert outputs.features[0].dtype == outputs.rpn[0].cls_logits.dtype == torch.bfloat16
    dtypes = []
    model.box_head.fc2.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    torch.manual_seed(0)
    losses = model.losses(outputs, targets)
    found = model.detect(outputs, [SIZE, SIZE])
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        inside = model.losses(outputs, targets)
    assert set(dtypes) == {torch.bfloat16}  # the box head follows the features
    assert all(torch.equal(inside[name], loss) and loss.dtype == torch.float32 for name, loss in losses.items())
    assert found[0].boxes_xyxy.dtype == found[0].scores.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model.predict([x.float() for x in outputs.features], [torch.tensor([[0.0, 0.0, 20.0, 20.0]])] * 2)
    assert dtypes == [torch.float32]


def test_detections_come_in_the_order_of_the_images(model, images):
    model.eval()
    sizes = [SIZE, (64, 80)]
    both = model.detect(model(images), sizes)
    swapped = model.detect(model(images.flip(0)), sizes[::-1])
    for ours, other in zip(both, reversed(swapped), strict=True):
        torch.testing.assert_close(ours.scores, other.scores)
    assert both[0].boxes_xyxy[:, 2].max() > 80 >= both[1].boxes_xyxy[:, 2].max()
    assert not both[0].scores.requires_grad


def test_up_compat_lets_the_predictions_of_all_levels_compete(model, images):
    model.eval()
    outputs = model(images)
    options = {"max_detections": 10**6, "nms_iou": 1.0}
    model.config = changed(SMALL, "post_processing", **options)
    right = model.detect(outputs, [SIZE, SIZE])
    model.config = changed(model.config, "roi_head", up_compat=True)
    compatible = model.detect(outputs, [SIZE, SIZE])
    for ours, theirs in zip(right, compatible, strict=True):
        assert len(ours.scores) == 50 * 3
        assert len(theirs.scores) == 4 * 50 * 3
        distance = (ours.scores[:, None] - theirs.scores).abs() + (ours.labels[:, None] != theirs.labels)
        distance += (ours.boxes_xyxy[:, None] - theirs.boxes_xyxy).abs().amax(dim=-1)
        assert distance.amin(dim=1).max() < 1e-3  # the right ones are among them


def test_all_layers_run_on_a_known_number_of_regions(model, images):
    rows = {}

    def count(name, module, inputs, output):
        rows.setdefault(name, []).append(len(output))

    for name in ("backbone.conv1", "rpn.conv", "box_head.fc1", "box_head.box_pred"):
        model.get_submodule(name).register_forward_hook(partial(count, name))
    with torch.no_grad():
        model.eval().run_all(images)
    assert rows == {"backbone.conv1": [2], "rpn.conv": [2] * 5, "box_head.fc1": [100], "box_head.box_pred": [100]}


def test_training_is_deterministic(images):
    def run():
        torch.manual_seed(3)
        model = SMALL.build(3)
        sum(model.losses(model(images), [make_target(), make_target()]).values()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.equal(run(), run())


def test_the_network_part_can_be_exported_alone(model, images):
    model.eval()
    exported = torch.export.export(model, (images,)).module()
    ours, theirs = model(images), exported(images)
    for one, other in zip(ours.features, theirs.features, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(ours.rpn, theirs.rpn, strict=True):
        torch.testing.assert_close(one.box_deltas, other.box_deltas)


def test_state_survives_copy_and_load(model, images):
    other = SMALL.build(3, pretrained=False)
    other.load_state_dict(deepcopy(model).state_dict())
    ours, theirs = (each.eval().detect(each(images), [SIZE, SIZE]) for each in (model, other))
    assert torch.equal(ours[0].scores, theirs[0].scores)


@pytest.mark.parametrize(("data", "message"), [
    ({"neck": {"num_levels": 3}, "roi_head": {"num_levels": 3}},
     "neck.num_levels: expected at least 4 (backbone.levels=[2, 3, 4, 5]), got 3. Raise it or give fewer "
     "backbone levels."),
    ({"roi_head": {"num_levels": 6}},
     "roi_head.num_levels: expected at most neck.num_levels=5, got 6. Lower it or raise neck.num_levels."),
])  # fmt: skip
def test_levels_that_do_not_fit_are_explained(data, message):
    with pytest.raises(ConfigError) as error:
        validate(FasterRCNNConfig, Document(data))
    assert str(error.value) == f"configuration: top level: {message}"


def test_class_count_is_checked():
    with pytest.raises(ConfigError) as error:
        SMALL.build(0)
    assert str(error.value) == "num_classes: expected at least 1, got 0. Give the data set's class count."


def test_configurations_survive_dumping():
    config = changed(SMALL, "post_processing", score_threshold=0.1)
    assert config.post_processing == RoIPostProcessing(score_threshold=0.1)
    assert validate(FasterRCNNConfig, Document(dump(config))) == config


def test_losses_of_extreme_outputs_under_autocast_are_those_of_fp32(model, images):
    targets = [make_target(), make_target()]

    def extreme(x):
        return torch.where(x > x.median(), 60.0, -60.0).bfloat16()

    raw = model(images)
    rpn = [type(level)(*map(extreme, level)) for level in raw.rpn]
    half = raw._replace(rpn=rpn)
    whole = raw._replace(rpn=[type(level)(*(x.float() for x in level)) for level in rpn])
    found = []
    for outputs, enabled in ((half, True), (whole, False)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(model.losses(outputs, targets))
    for name, loss in found[1].items():
        assert loss.isfinite()
        assert not name.startswith("rpn") or torch.equal(found[0][name], loss)
