from copy import deepcopy

import pytest
import torch

from sparsedet.common.config import dump, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models import (
    DETECTORS,
    Anchors,
    FPNConfig,
    HeadOutput,
    MobileNetV2Config,
    ResNetConfig,
    RetinaHeadConfig,
    RetinaNetConfig,
)
from sparsedet.detection.models.boxes import centres
from sparsedet.detection.structures import Target

SMALL = RetinaNetConfig(backbone=ResNetConfig(width=8), neck=FPNConfig(channels=8), head=RetinaHeadConfig(num_convs=1))
SIZE = (64, 96)


def make_target(boxes=((10.0, 12.0, 50.0, 44.0),), ignore=()):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Target(boxes, torch.arange(len(boxes)) % 3, torch.tensor(ignore).reshape(-1, 4), SIZE)


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


@pytest.mark.parametrize("num_boxes", [(0, 0), (1, 0)])
def test_images_without_boxes_give_finite_losses(model, images, num_boxes):
    targets = [make_target(((10.0, 12.0, 50.0, 44.0),) * number) for number in num_boxes]
    losses = model.losses(model(images), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    if not any(num_boxes):
        assert losses["box_loss"] == 0
        assert losses["cls_loss"] > 0


def test_ignore_regions_give_no_gradient_there(model, images):
    outputs = [HeadOutput(*(tensor.detach().requires_grad_() for tensor in output)) for output in model(images)]
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
    doubled = [HeadOutput(*(torch.cat([tensor, tensor]) for tensor in output)) for output in outputs]
    twice = model.losses(doubled, [make_target(), make_target(())] * 2)
    for key, loss in once.items():
        torch.testing.assert_close(twice[key], loss)


def test_autocast_changes_the_network_but_not_the_precision_of_losses_and_boxes(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        losses = model.losses(outputs, [make_target(), make_target()])
        found = model.detect(outputs, [SIZE, SIZE])
    assert outputs[0].cls_logits.dtype == torch.bfloat16
    widened = [HeadOutput(*(tensor.float() for tensor in output)) for output in outputs]
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


def test_the_network_part_can_be_exported_alone(model, images):
    model.eval()
    exported = torch.export.export(model, (images,)).module()
    for ours, theirs in zip(model(images), exported(images), strict=True):
        torch.testing.assert_close(ours.cls_logits, theirs.cls_logits)
        torch.testing.assert_close(ours.box_deltas, theirs.box_deltas)


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
])  # fmt: skip
def test_levels_that_do_not_fit_are_explained(data, message):
    with pytest.raises(ConfigError) as error:
        validate(RetinaNetConfig, Document(data))
    assert str(error.value) == f"configuration: top level: {message}"


def test_class_count_is_checked():
    with pytest.raises(ConfigError) as error:
        SMALL.build(0)
    assert str(error.value) == "num_classes: expected at least 1, got 0. Give the data set's class count."


@pytest.mark.parametrize("name", DETECTORS)
def test_configurations_survive_dumping(name):
    config = DETECTORS[name]()
    assert validate(DETECTORS[name], Document(dump(config))) == config
    assert validate(RetinaNetConfig, Document(dump(SMALL))) == SMALL
