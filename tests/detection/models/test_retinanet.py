from copy import deepcopy

import pytest
import torch
from torchvision.ops import box_iou

from sparsedet.common.config import dump, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models import (
    DETECTORS,
    Anchors,
    FocalLoss,
    FPNConfig,
    HeadOutput,
    IoULoss,
    L1Loss,
    MaxIoU,
    MobileNetV2Config,
    PostProcessing,
    ResNetConfig,
    RetinaHeadConfig,
    RetinaNetConfig,
    normalizers,
)
from sparsedet.detection.models.anchors import per_anchor
from sparsedet.detection.models.boxes import centres, decode_boxes
from sparsedet.detection.structures import Target

SMALL = RetinaNetConfig(backbone=ResNetConfig(width=8), neck=FPNConfig(channels=8), head=RetinaHeadConfig(num_convs=1))
ORIGINAL = RetinaNetConfig(  # as the first paper has it
    backbone=ResNetConfig(width=8, norm="batch_norm_fixed_stats"),
    neck=FPNConfig(channels=8, norm="none"),
    head=RetinaHeadConfig(num_convs=1, norm="none"),
    anchors=Anchors(scales=(4.0, 5.04, 6.35), ratios=(0.5, 1.0, 2.0)),
    assigner=MaxIoU(positive_iou=0.5, negative_iou=0.4, low_quality=True),
    cls_loss=FocalLoss(),
    box_losses=(L1Loss(),),
    legacy_boxes=True,
)
WITH_IOU = RetinaNetConfig(
    backbone=ResNetConfig(width=8),
    neck=FPNConfig(channels=8),
    head=RetinaHeadConfig(num_convs=1, iou_branch=True, class_major=True),
    box_losses=(IoULoss(by_quality=True), L1Loss(mean=True)),
)
KINDS = {"improve": SMALL, "original": ORIGINAL, "with_iou": WITH_IOU}
SIZE = (64, 96)


def make_target(boxes=((10.0, 12.0, 50.0, 44.0),), ignore=()):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Target(boxes, torch.arange(len(boxes)) % 3, torch.tensor(ignore).reshape(-1, 4), SIZE)


def change(output, function):
    return HeadOutput(*(None if tensor is None else function(tensor) for tensor in output))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build(num_classes=3)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [
    RetinaNetConfig(backbone=MobileNetV2Config(width_mult=0.25), neck=FPNConfig(channels=16),
                    head=RetinaHeadConfig(num_convs=2, norm="none")),
    RetinaNetConfig(backbone=ResNetConfig(type="resnet50", width=8, levels=(2, 3, 4, 5)),
                    neck=FPNConfig(channels=16, norm="none", extra="pool"),
                    anchors=Anchors(scales=(4.0,), ratios=(0.5, 1.0, 2.0))),
], ids=["mobilenet_v2", "resnet50"])  # fmt: skip
def test_every_backbone_trains_and_detects(config, images):
    model = config.build(num_classes=5)
    outputs = model(images)
    assert len(outputs) == 5
    finest = model.backbone.strides[0]
    for level, output in enumerate(outputs):
        size = tuple(-(-side // (finest * 2**level)) for side in SIZE)
        assert output.cls_logits.shape == (2, config.anchors.num_per_cell * 5, *size)
        assert output.box_deltas.shape == (2, config.anchors.num_per_cell * 4, *size)
    losses = model.losses(outputs, [make_target(), make_target()])
    assert set(losses) == {"cls_loss", "box_loss"}
    assert all(loss.isfinite() and loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    without = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    assert all(name.startswith("head.box_tower.norms.") for name in without)  # levels without positives
    assert len(model.eval().detect(model(images), [SIZE, SIZE])) == 2


def test_names_that_recipes_rely_on(model):
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {"backbone.conv1", "head.cls_pred", "head.box_pred"} <= names
    assert {"backbone.layer1.0.conv1", "backbone.layer2.0.downsample.0"} <= names
    assert {name for name in names if name.startswith("neck.")} == {
        "neck.lateral.3.conv", "neck.lateral.4.conv", "neck.lateral.5.conv",
        "neck.output.3.conv", "neck.output.4.conv", "neck.output.5.conv",
        "neck.extra.6", "neck.extra.7",
    }  # fmt: skip
    assert {"head.cls_tower.convs.0", "head.box_tower.convs.0"} <= names
    small = RetinaNetConfig(backbone=MobileNetV2Config(width_mult=0.25)).build(1)
    assert isinstance(small.get_submodule("backbone.features.0.0"), torch.nn.Conv2d)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_its_images(kind, images):
    torch.manual_seed(0)
    model = KINDS[kind].build(num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    targets = [make_target(), make_target(((40.0, 8.0, 90.0, 60.0), (5.0, 5.0, 25.0, 25.0)))]
    totals = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = model.losses(model(images), targets)
        assert set(losses) == {"cls_loss", "box_loss", "iou_loss"} - (set() if kind == "with_iou" else {"iou_loss"})
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert torch.tensor(totals).isfinite().all()
    assert totals[-1] < 0.9 * totals[0]
    assert len(model.eval().detect(model(images), [SIZE, SIZE])) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_boxes", [(0, 0), (1, 0)])
@pytest.mark.parametrize("ignore", [(), ((0.0, 0.0, 96.0, 64.0),)], ids=["no_region", "only_regions"])
def test_images_without_boxes_give_finite_losses(kind, num_boxes, ignore, images):
    torch.manual_seed(0)
    model = KINDS[kind].build(num_classes=3)
    targets = [make_target(((10.0, 12.0, 50.0, 44.0),) * number, ignore) for number in num_boxes]
    losses = model.losses(model(images), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if not any(num_boxes):
        assert losses["box_loss"] == losses.get("iou_loss", 0) == 0
        assert (losses["cls_loss"] > 0) or ignore


def test_the_iou_branch_learns_the_iou_of_the_predicted_box(images):
    torch.manual_seed(0)
    model = WITH_IOU.model_copy(update={"iou_loss_weight": 3.0}).build(num_classes=3).eval()
    outputs = model(images)
    targets = [make_target(), make_target(())]
    anchors = model.anchors(outputs)
    is_positive = model.config.assigner.assign(anchors, targets, legacy=False).matches[0] >= 0
    assert is_positive.sum() > 1
    deltas = torch.cat([per_anchor(output.box_deltas, 4)[0] for output in outputs])
    iou = box_iou(decode_boxes(deltas, torch.cat(anchors)), targets[0].boxes_xyxy)[:, 0]
    guess = torch.cat([per_anchor(output.iou_logits, 1)[0, :, 0] for output in outputs]).sigmoid()
    entropy = -iou * guess.log() - (1 - iou) * (1 - guess).log()
    losses = model.losses(outputs, targets)
    torch.testing.assert_close(losses["iou_loss"], 3 * entropy[is_positive].mean())
    gradients = torch.autograd.grad(losses["iou_loss"], [output.box_deltas for output in outputs], allow_unused=True)
    assert gradients == (None,) * len(outputs)  # the target is a number, not a function of the box


def test_scores_are_multiplied_by_the_iou():
    config = WITH_IOU.model_copy(update={"post_processing": PostProcessing(score_threshold=0.0, nms_iou=1.0)})
    model = config.build(num_classes=1).eval()
    outputs = [
        HeadOutput(torch.full((1, 2, 1, 1), 0.4), torch.zeros(1, 8, 1, 1), torch.tensor([iou, -iou]).view(1, 2, 1, 1))
        for iou in (1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    found = model.detect(outputs, [(512, 512)])[0]
    expected = torch.tensor(0.4).sigmoid() * torch.tensor([5.0, 4, 3, 2, 1, -1, -2, -3, -4, -5]).sigmoid()
    torch.testing.assert_close(found.scores, expected)


def test_class_major_is_another_order_of_the_same_channels(images):
    torch.manual_seed(0)
    config = WITH_IOU.model_copy(update={"head": WITH_IOU.head.model_copy(update={"class_major": False})})
    model, other = config.build(num_classes=3), WITH_IOU.build(num_classes=3)
    state = model.state_dict()
    for name in ("weight", "bias"):
        key = f"head.cls_pred.{name}"
        torch.nn.init.normal_(state[key])
        state[key] = state[key].unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1)
    other.load_state_dict(state)
    targets = [make_target(), make_target(((40.0, 8.0, 90.0, 60.0), (5.0, 5.0, 25.0, 25.0)))]
    losses, others = (each.losses(each(images), targets) for each in (model, other))
    for key, loss in losses.items():
        torch.testing.assert_close(others[key], loss)
    found, others = (each.eval().detect(each(images), [SIZE, SIZE]) for each in (model, other))
    for ours, theirs in zip(found, others, strict=True):
        assert len(ours.scores) > 50
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_share_their_positive_anchors_only_with_an_iou_branch(kind, images, monkeypatch):
    torch.manual_seed(0)
    model = KINDS[kind].build(num_classes=3).eval()
    targets = [make_target(((10.0, 12.0, 50.0, 44.0),) * 9), make_target()]
    outputs = model(images)
    alone = model.losses(outputs, targets)
    # a second process with three times as many positive anchors: (1 + 3) / 2 of ours for each
    monkeypatch.setattr(normalizers.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(normalizers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(normalizers.dist, "all_reduce", lambda sums: sums.mul_(4))
    together = model.losses(outputs, targets)
    if kind != "with_iou":
        assert together == alone
        return
    for key in ("cls_loss", "iou_loss"):
        torch.testing.assert_close(together[key], alone[key] / 2)
    model.config = WITH_IOU.model_copy(update={"box_losses": WITH_IOU.box_losses[1:]})
    l1 = model.losses(outputs, targets)["box_loss"]
    torch.testing.assert_close(together["box_loss"] - l1, (alone["box_loss"] - l1) / 2)


def test_ignore_regions_give_no_gradient_there(model, images):
    outputs = [change(output, lambda tensor: tensor.detach().requires_grad_()) for output in model(images)]
    left_half = [0.0, 0.0, 48.0, 64.0]
    target = make_target(((50.0, 8.0, 90.0, 50.0),), ignore=(left_half,))
    sum(model.losses(outputs, [target, make_target()]).values()).backward()
    for output, anchors in zip(outputs, model.anchors(outputs), strict=True):
        gradient = output.cls_logits.grad.view(2, 2, 3, -1).permute(0, 3, 1, 2).flatten(1, 2)
        x, y = centres(anchors).T
        inside = (x > 0) & (x < 48) & (y > 0) & (y < 64)
        assert (gradient[0][inside] == 0).all()
        assert (gradient[0][~inside] != 0).all()
        assert (gradient[1] != 0).all()


def test_losses_normalise_by_the_positive_anchors_of_the_batch(model, images):
    outputs = model(images)
    once = model.losses(outputs, [make_target(), make_target(())])
    doubled = [change(output, lambda tensor: torch.cat([tensor, tensor])) for output in outputs]
    twice = model.losses(doubled, [make_target(), make_target(())] * 2)
    for key, loss in once.items():
        torch.testing.assert_close(twice[key], loss)


def test_autocast_changes_the_network_but_not_the_precision_of_losses_and_boxes(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        losses = model.losses(outputs, [make_target(), make_target()])
        found = model.detect(outputs, [SIZE, SIZE])
    assert outputs[0].cls_logits.dtype == torch.bfloat16
    widened = [change(output, torch.Tensor.float) for output in outputs]
    exact = model.losses(widened, [make_target(), make_target()])
    assert all(torch.equal(losses[key], exact[key]) for key in exact)
    assert found[0].boxes_xyxy.dtype == found[0].scores.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_detections_come_in_the_order_of_the_images(model, images):
    config = model.config.model_copy(
        update={"post_processing": model.config.post_processing.model_copy(update={"score_threshold": 0.0})}
    )
    model.config = config
    model.eval()
    both = model.detect(model(images), [SIZE, (64, 80)])
    swapped = model.detect(model(images.flip(0)), [(64, 80), SIZE])
    for ours, other in zip(both, reversed(swapped), strict=True):
        torch.testing.assert_close(ours.scores, other.scores)
    assert both[0].boxes_xyxy[:, 2].max() > 80 >= both[1].boxes_xyxy[:, 2].max()
    assert both[0].labels.dtype == torch.int64
    assert not both[0].scores.requires_grad


def test_training_is_deterministic(images):
    def run():
        torch.manual_seed(3)
        model = SMALL.build(3)
        sum(model.losses(model(images), [make_target(), make_target()]).values()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.equal(run(), run())


@pytest.mark.parametrize("kind", ["improve", "with_iou"])
def test_the_network_part_can_be_exported_alone(kind, images):
    model = KINDS[kind].build(num_classes=3).eval()
    exported = torch.export.export(model, (images,)).module()
    for ours, theirs in zip(model(images), exported(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_state_survives_copy_and_load(model, images):
    other = SMALL.build(3, pretrained=False)
    other.load_state_dict(deepcopy(model).state_dict())
    assert torch.equal(other.eval()(images)[0].cls_logits, model.eval()(images)[0].cls_logits)


def test_stride_is_the_backbones_largest():
    assert SMALL.build(1).stride == 32
    shallow = RetinaNetConfig(backbone=ResNetConfig(width=8, levels=(2, 3)))
    assert shallow.build(1).stride == 8


@pytest.mark.parametrize(("data", "message"), [
    ({"backbone": {"type": "resnet18", "levels": [2, 4]}},
     "backbone.levels: expected consecutive levels, got [2, 4]. Fill the gap."),
    ({"neck": {"num_levels": 2}},
     "neck.num_levels: expected at least 3 (backbone.levels=[3, 4, 5]), got 2. Raise it or give fewer "
     "backbone levels."),
    ({"iou_loss_weight": 2.0},
     "iou_loss_weight: expected 1.0 without head.iou_branch, got 2.0. Remove it or set head.iou_branch: true."),
])  # fmt: skip
def test_fields_that_do_not_fit_are_explained(data, message):
    with pytest.raises(ConfigError) as error:
        validate(RetinaNetConfig, Document(data))
    assert str(error.value) == f"configuration: top level: {message}"


@pytest.mark.parametrize(("data", "message"), [
    ({"box_losses": []}, "box_losses: expected"),
    ({"box_losses": [{"type": "giuo"}]},
     "box_losses[0].type: expected one of ['ciou', 'diou', 'giou', 'iou', 'l1', 'linear_iou'], got 'giuo'. "
     "Did you mean 'giou'? Correct it."),
    ({"box_losses": [{"type": "l1"}, {"type": "iou", "mean": True}]},
     "box_losses[1].mean: expected one of ['by_quality', 'type', 'weight'], got the unknown key 'mean'."),
    ({"cls_loss": {"type": "focal", "alpha": 1.5}}, "cls_loss.alpha: expected"),
    ({"assigner": {"type": "max_iou", "positive_iou": 0.5, "negative_iou": 0.4, "low_quality": True, "top_n": 9}},
     "assigner.top_n: expected one of ['ignore_iou', "),
])  # fmt: skip
def test_faults_in_the_parts_are_explained(data, message):
    with pytest.raises(ConfigError) as error:
        validate(RetinaNetConfig, Document(data))
    assert str(error.value).removeprefix("configuration: ").startswith(message), error.value


def test_anchors_that_would_vanish_are_refused_before_training():
    config = RetinaNetConfig(backbone=ResNetConfig(width=8), anchors=Anchors(ratios=(1e-3,)), legacy_boxes=True)
    with pytest.raises(ConfigError, match=r"anchors.ratios: expected sides of at least one pixel .* at stride 8\."):
        config.build(1)


def test_class_count_is_checked():
    with pytest.raises(ConfigError) as error:
        SMALL.build(0)
    assert str(error.value) == "num_classes: expected at least 1, got 0. Give the data set's class count."


@pytest.mark.parametrize("name", DETECTORS)
def test_configurations_survive_dumping(name):
    config = DETECTORS[name]()
    assert validate(DETECTORS[name], Document(dump(config))) == config


@pytest.mark.parametrize("kind", KINDS)
def test_configurations_of_every_kind_survive_dumping(kind):
    assert validate(RetinaNetConfig, Document(dump(KINDS[kind]))) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_detections_of_extreme_outputs_under_autocast_are_those_of_fp32(kind, images):
    torch.manual_seed(0)
    model = KINDS[kind].build(num_classes=3)
    targets = [make_target(), make_target()]
    raw = model.eval()(images)
    half = [change(output, lambda x: torch.where(x > x.median(), 60.0, -60.0).bfloat16()) for output in raw]
    half = [output._replace(box_deltas=output.box_deltas / 60) for output in half]  # boxes that stay in the image
    whole = [change(output, lambda x: x.float().requires_grad_()) for output in half]
    half = [change(output, lambda x: x.requires_grad_()) for output in half]
    with torch.autocast("cpu", torch.bfloat16):
        inside, found = model.losses(half, targets), model.detect(half, [SIZE, SIZE])
    outside, expected = model.losses(whole, targets), model.detect(whole, [SIZE, SIZE])
    assert all(torch.equal(inside[name], loss) and loss.isfinite() for name, loss in outside.items())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)
        assert one.boxes_xyxy.isfinite().all()
    assert len(found[0].scores) > 0
    sum(inside.values()).backward()
    assert all(x.grad.isfinite().all() for output in half for x in output if x is not None and x.grad is not None)
