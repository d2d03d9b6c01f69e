import math

import pytest
import torch
from torchvision.ops import box_iou, nms

from sparsedet.common.errors import ConfigError
from sparsedet.detection.models import sampling
from sparsedet.detection.models.anchors import Anchors
from sparsedet.detection.models.boxes import clip_boxes, decode_boxes, encode_boxes
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.rpn import RPNConfig, RPNOutput
from sparsedet.detection.models.sampling import BalancedSampler
from sparsedet.detection.structures import Target

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
SQUARE = Anchors(scales=(2.0,), ratios=(1.0,))
SIZE = (64, 80)


def build(legacy=False, **options):
    torch.manual_seed(0)
    return RPNConfig(**options).build(in_channels=6, finest_stride=4, legacy=legacy)


def make_outputs(num_anchors=3, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)

    def draw(channels, stride):
        return torch.randn(2, channels, SIZE[0] // stride, SIZE[1] // stride, generator=generator)

    return [RPNOutput(draw(num_anchors, s), spread * draw(num_anchors * 4, s)) for s in (4, 8, 16)]


def make_target(boxes=(), ignore=(), image_size=SIZE):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.arange(len(boxes)), torch.tensor(ignore).reshape(-1, 4), image_size)


@pytest.fixture
def first_ones(monkeypatch):
    """Choose the first candidates instead of random ones."""
    monkeypatch.setattr(sampling, "choose", lambda indices, number: indices[:number])


def test_the_network_is_shared_by_the_levels_and_keeps_the_anchors_order():
    rpn = build(channels=5)
    features = [torch.randn(2, 6, 8, 10), torch.randn(2, 6, 4, 5)]
    outputs = rpn(features)
    assert {name: tuple(value.shape) for name, value in rpn.state_dict().items()} == {
        "conv.weight": (5, 6, 3, 3), "conv.bias": (5,),
        "cls_pred.weight": (3, 5, 1, 1), "cls_pred.bias": (3,),
        "box_pred.weight": (12, 5, 1, 1), "box_pred.bias": (12,),
    }  # fmt: skip
    for x, output in zip(features, outputs, strict=True):
        hidden = torch.nn.functional.conv2d(x, rpn.conv.weight, rpn.conv.bias, padding=1).clamp(min=0)
        torch.testing.assert_close(
            output.cls_logits, torch.einsum("bihw,oi->bohw", hidden, rpn.cls_pred.weight[..., 0, 0])
        )
        torch.testing.assert_close(
            output.box_deltas, torch.einsum("bihw,oi->bohw", hidden, rpn.box_pred.weight[..., 0, 0])
        )
    assert [len(level) for level in rpn.anchors(outputs)] == [8 * 10 * 3, 4 * 5 * 3]
    assert build().conv.out_channels == 6


def test_initial_weights():
    rpn = RPNConfig(init_std=0.02).build(64, 4, legacy=False)
    for layer in (rpn.conv, rpn.cls_pred, rpn.box_pred):
        tolerance = 4 * 0.02 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(0.02, abs=tolerance)
        assert not layer.bias.any()


def test_anchors_that_would_vanish_are_refused():
    with pytest.raises(ConfigError, match=r"anchors.ratios: expected sides of at least one pixel .* at stride 4\."):
        build(legacy=True, anchors=Anchors(scales=(8.0,), ratios=(1e-3,)))


@pytest.mark.parametrize("ignoring", ["noignore", "ignore"])
def test_targets_equal_ups(golden, first_ones, ignoring):
    units, two_stage = golden("golden_units.npz"), golden("golden_units_two_stage.npz")
    config = RPNConfig(assigner=MaxIoU(positive_iou=0.7, negative_iou=0.3, low_quality=True, low_quality_iou=0.3))
    anchors = [
        config.anchors.grid((math.ceil(640 / s), math.ceil(800 / s)), s, legacy=True, device=torch.device("cpu"))
        for s in (4, 8, 16, 32, 64)
    ]
    targets = []
    for image, info in enumerate(golden("golden_units.json")["assign"]["image_info"]):
        rows = units[f"assign_gt{image}"]
        regions = units[f"assign_ignore{image}"] if ignoring == "ignore" else torch.zeros(0, 4)
        targets.append(Target(rows[:, :4] + ONE_PIXEL, rows[:, 4].long() - 1, regions + ONE_PIXEL, tuple(info[:2])))
    assignment = config.assigner.assign(anchors, targets, legacy=True)
    for image, matches in enumerate(assignment.matches):
        prefix = f"assign_rpn_norandom_{ignoring}_{image}_"
        positive, background = config.sampler.sample(matches)
        assert torch.equal(positive.int(), two_stage[prefix + "pos"])
        assert torch.equal(torch.cat([positive, background]).sort().values.int(), two_stage[prefix + "counted"])
        deltas = encode_boxes(assignment.boxes_xyxy[matches[positive]], torch.cat(anchors)[positive])
        torch.testing.assert_close(deltas, two_stage[prefix + "loc"], rtol=1e-5, atol=1e-5)
    assert (two_stage[f"assign_rpn_norandom_{ignoring}_0_cls"] == 1).all()  # there is one class


def test_class_loss_equals_ups(golden, monkeypatch):
    units = golden("golden_units.npz")
    expected = golden("golden_units_two_stage.json")["losses"]["sigmoid_cross_entropy_rpn"]
    logits = units["loss_logits"][:, :, 0].clone().requires_grad_()
    rows = iter(units["loss_target"])
    monkeypatch.setattr(BalancedSampler, "sample", lambda self, matches: in_target(next(rows)))
    rpn = build(anchors=SQUARE)
    output = RPNOutput(logits.view(2, 1, 10, 20), torch.zeros(2, 4, 10, 20))
    loss = rpn.losses([output], [make_target([[0.0, 0.0, 30.0, 30.0]])] * 2)["rpn_cls_loss"]
    assert loss.item() == pytest.approx(expected["value"], rel=1e-5)
    loss.backward()
    gradient = logits.grad.flatten()[expected["grad_probe_idx"]]
    torch.testing.assert_close(gradient, torch.tensor(expected["grad_probe"]), rtol=1e-4, atol=1e-7)


def in_target(row):
    return (row > 0).nonzero()[:, 0], (row == 0).nonzero()[:, 0]


def test_losses_equal_a_plain_loop(first_ones):
    outputs = make_outputs()
    rpn = build(sampler=BalancedSampler(batch_size=40, positive_share=0.3), cls_weight=2.0, box_weight=3.0)
    targets = [make_target([[3.0, 5.0, 40.0, 50.0], [50.0, 10.0, 60.0, 20.0]]), make_target([[8.0, 8.0, 33.0, 30.0]])]
    losses = rpn.losses(outputs, targets)
    anchors = torch.cat(rpn.anchors(outputs))
    cls_sum = box_sum = count = num_positive = 0
    for image, target in enumerate(targets):
        logits = torch.cat([o.cls_logits[image].permute(1, 2, 0).flatten() for o in outputs])
        deltas = torch.cat([o.box_deltas[image].permute(1, 2, 0).reshape(-1, 4) for o in outputs])
        matches = rpn.config.assigner.match(anchors, target.boxes_xyxy, target.ignore_xyxy)
        positive, background = rpn.config.sampler.sample(matches)
        for anchor in positive.tolist():
            cls_sum += -math.log(torch.sigmoid(logits[anchor]))
            true_deltas = encode_boxes(target.boxes_xyxy[matches[anchor]], anchors[anchor])
            box_sum += (deltas[anchor] - true_deltas).abs().sum().item()
        for anchor in background.tolist():
            cls_sum += -math.log(1 - torch.sigmoid(logits[anchor]))
        count += len(positive) + len(background)
        num_positive += len(positive)
    assert num_positive > 2
    assert count == 80
    assert losses["rpn_cls_loss"].item() == pytest.approx(2 * cls_sum / count, rel=1e-4)
    assert losses["rpn_box_loss"].item() == pytest.approx(3 * box_sum / count, rel=1e-4)


def test_an_anchor_of_the_second_image_is_not_taken_for_one_of_the_first():
    outputs = [RPNOutput(*(x.requires_grad_() for x in output)) for output in make_outputs()]
    sum(build().losses(outputs, [make_target(), make_target([[8.0, 8.0, 40.0, 40.0]])]).values()).backward()
    touched = [any(bool(output.box_deltas.grad[image].any()) for output in outputs) for image in (0, 1)]
    assert touched == [False, True]


@pytest.mark.parametrize(("ignore", "has_loss"), [((), True), (((-100.0, -100.0, 200.0, 200.0),), False)])
def test_no_boxes_at_all(ignore, has_loss):
    outputs = [RPNOutput(*(x.requires_grad_() for x in output)) for output in make_outputs()]
    losses = build().losses(outputs, [make_target(ignore=ignore), make_target(ignore=ignore)])
    assert losses["rpn_box_loss"] == 0
    assert (losses["rpn_cls_loss"] > 0) == has_loss
    assert losses["rpn_cls_loss"].isfinite()
    sum(losses.values()).backward()
    for output in outputs:
        assert not output.box_deltas.grad.any()
        assert output.cls_logits.grad.isfinite().all()
        assert output.cls_logits.grad.any() == has_loss


def plain_proposals(rpn, outputs, image, size, top_n, number):
    boxes, logits = [], []
    for output, anchors in zip(outputs, rpn.anchors(outputs), strict=True):
        level_logits = output.cls_logits[image].permute(1, 2, 0).flatten()
        deltas = output.box_deltas[image].permute(1, 2, 0).reshape(-1, 4)
        best = level_logits.argsort(descending=True)[:top_n]
        found = clip_boxes(decode_boxes(deltas[best], anchors[best]), size, rpn.legacy)
        is_left = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        found, level_logits = found[is_left], level_logits[best][is_left]
        keep = nms(found, level_logits, rpn.config.nms_iou)[:number]
        boxes.append(found[keep])
        logits.append(level_logits[keep])
    order = torch.cat(logits).argsort(descending=True)[:number]
    return torch.cat(boxes)[order]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("top_n", "number", "nms_iou"), [(10**6, 10**6, 0.7), (100, 40, 0.7), (50, 90, 0.3)])
def test_proposals_equal_a_plain_loop(top_n, number, nms_iou, legacy):
    rpn, outputs = build(legacy, nms_iou=nms_iou), make_outputs()
    sizes = [SIZE, (50, 61)]
    ours = rpn.proposals(outputs, sizes, top_n, number)
    for image, (boxes, size) in enumerate(zip(ours, sizes, strict=True)):
        torch.testing.assert_close(boxes, plain_proposals(rpn, outputs, image, size, top_n, number))
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert not ours[0].requires_grad


def test_levels_do_not_suppress_each_other():
    rpn = build(anchors=SQUARE)
    # the anchor of the first cell of level 1 is [-4, -4, 12, 12]: let the one of level 0, [-2, -2, 6, 6], equal it
    same = encode_boxes(torch.tensor([[-4.0, -4.0, 12.0, 12.0]]), torch.tensor([[-2.0, -2.0, 6.0, 6.0]]))
    outputs = [
        RPNOutput(torch.full((1, 1, 1, 1), score), deltas.view(1, 4, 1, 1))
        for score, deltas in ((2.0, same), (1.0, torch.zeros(4)))
    ]
    (boxes,) = rpn.proposals(outputs, [SIZE], 10, 10)
    assert box_iou(boxes[:1], boxes[1:]).item() == pytest.approx(1)


def test_nothing_remains_of_boxes_outside_the_image():
    outputs = [RPNOutput(torch.zeros(1, 1, 2, 2), torch.tensor([-50.0, 0, 0, 0]).view(1, 4, 1, 1).expand(1, 4, 2, 2))]
    assert build(anchors=SQUARE).proposals(outputs, [SIZE], 10, 10)[0].shape == (0, 4)
    legacy = build(legacy=True, anchors=SQUARE, nms_iou=1.0).proposals(outputs, [SIZE], 10, 10)[0]
    assert len(legacy) == 4
    assert (legacy[:, 2] == 1).all()


def test_boxes_that_are_no_numbers_are_dropped():
    for legacy in (False, True):
        outputs = [RPNOutput(torch.zeros(1, 1, 2, 2), torch.full((1, 4, 2, 2), float("nan")))]
        assert build(legacy, anchors=SQUARE).proposals(outputs, [SIZE], 10, 10)[0].shape == (0, 4)
