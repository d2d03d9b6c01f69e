import math

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou

from sparsedet.detection.models.box_losses import IoULoss, L1Loss, Matched
from sparsedet.detection.models.boxes import decode_boxes, encode_boxes, paired_iou

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
TYPES = ("iou", "linear_iou", "giou", "diou", "ciou")
LOSSES = [
    *(IoULoss(type=name, by_quality=by_quality) for name in TYPES for by_quality in (False, True)),
    L1Loss(),
    L1Loss(mean=True),
]


def match(deltas, true_deltas, anchors, quality=None, num_positive=None):
    boxes, true_boxes = decode_boxes(deltas, anchors), decode_boxes(true_deltas, anchors)
    quality = paired_iou(boxes.detach(), true_boxes) if quality is None else quality
    return Matched(
        boxes,
        true_boxes,
        deltas,
        true_deltas,
        quality,
        torch.tensor(float(max(len(deltas), 1) if num_positive is None else num_positive)),
        quality.sum().clamp(min=1),
    )


def match_boxes(boxes, true_boxes, **options):
    boxes, true_boxes = torch.tensor(boxes), torch.tensor(true_boxes)
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(len(boxes), 4)
    return match(encode_boxes(boxes, anchors), encode_boxes(true_boxes, anchors), anchors, **options)


@pytest.fixture(scope="module")
def units(golden):
    return golden("golden_units.npz")


@pytest.fixture(scope="module")
def expected(golden):
    return golden("golden_units.json")["losses"]


@pytest.mark.parametrize(("losses", "name", "scale", "num_positive"), [
    *(([IoULoss(type=name)], f"iou_loss_{name}", 0.3, None) for name in TYPES),
    ([IoULoss(by_quality=True)], "iou_loss_giou_weighted", 1.0, None),
    ([L1Loss(weight=4.5)], "l1_loss_norm13", 1.0, 13),
    ([L1Loss(mean=True)], "l1_loss_mean", 1.0, None),
    ([IoULoss(by_quality=True), L1Loss(mean=True)], "compose_loc_loss", 1.0, None),
])  # fmt: skip
def test_value_and_gradient_equal_ups(losses, name, scale, num_positive, units, expected):
    deltas = (scale * units["loc_pred"]).requires_grad_()
    anchors = units["loc_anchor"] + ONE_PIXEL
    matched = match(deltas, scale * units["loc_target"], anchors, units["loc_weight"], num_positive)
    value = sum(loss.value(matched) for loss in losses)
    value.backward()
    theirs = expected[name]
    assert value.item() == pytest.approx(theirs["value"], rel=1e-6)
    assert deltas.grad.abs().sum().item() == pytest.approx(theirs["grad_abs_sum"], rel=1e-6)
    assert deltas.grad.sum().item() == pytest.approx(theirs["grad_sum"], rel=1e-5)
    probes = deltas.grad.flatten()[theirs["grad_probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(theirs["grad_probe"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "metric"), [
    ("linear_iou", box_iou),
    ("giou", generalized_box_iou),
    ("diou", distance_box_iou),
    ("ciou", complete_box_iou),
])  # fmt: skip
def test_iou_losses_are_one_minus_torchvisions_metrics(name, metric, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = 50 * torch.rand(2, 30, 2, generator=generator)
    first, second = torch.cat([corners, corners + 2 + 40 * torch.rand(2, 30, 2, generator=generator)], dim=2)
    matched = match_boxes(first.tolist(), second.tolist())
    expected = 2.0 * (1 - metric(first, second).diagonal()).mean()
    torch.testing.assert_close(IoULoss(type=name, weight=2.0).value(matched), expected, rtol=1e-5, atol=1e-5)


def test_values_worked_by_hand():
    # IoU 4 / 12 of two boxes in an enclosing one of 16, and IoU 0 of two squares of 1 in an enclosing one of 4 x 1
    matched = match_boxes([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0]], [[2.0, 0.0, 6.0, 2.0], [3.0, 0.0, 4.0, 1.0]])
    torch.testing.assert_close(matched.quality, torch.tensor([1 / 3, 0.0]))
    values = {name: IoULoss(type=name).value(matched).item() for name in ("iou", "linear_iou", "giou")}
    assert values["iou"] == pytest.approx((math.log(3) - math.log(1e-6)) / 2)
    assert values["linear_iou"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["giou"] == pytest.approx((2 / 3 + 1 + 2 / 4) / 2)
    assert IoULoss(by_quality=True).value(matched).item() == pytest.approx(2 / 3 / 3)
    # deltas of the second pair: the centres differ by 3 of the anchor's 8 pixels, the sizes are equal
    assert L1Loss().value(matched).item() == pytest.approx((2 / 8 + 3 / 8) / 2)
    assert L1Loss(mean=True, weight=3.0).value(matched).item() == pytest.approx(3 * (2 / 8 + 3 / 8) / 8)


def test_what_the_losses_are_divided_by():
    matched = match_boxes([[0.0, 0.0, 4.0, 2.0]] * 3, [[2.0, 0.0, 6.0, 2.0]] * 3, num_positive=2)
    matched = matched._replace(total_quality=torch.tensor(4.0))
    assert IoULoss(type="linear_iou").value(matched).item() == pytest.approx(3 * (2 / 3) / 2)
    assert IoULoss(type="linear_iou", by_quality=True).value(matched).item() == pytest.approx(3 * (2 / 3) / 3 / 4)
    assert L1Loss().value(matched).item() == pytest.approx(3 * (2 / 8) / 2)
    assert L1Loss(mean=True).value(matched).item() == pytest.approx(3 * (2 / 8) / 12)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_without_positive_anchors_the_loss_is_zero_and_stays_in_the_graph(loss):
    deltas = torch.zeros(0, 4, requires_grad=True)
    value = loss.value(match(deltas, deltas.detach(), torch.zeros(0, 4)))
    value.backward()
    assert value == 0
    assert deltas.grad.shape == (0, 4)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_boxes_that_do_not_meet_and_huge_deltas_give_finite_gradients(loss):
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(3, 1)
    deltas = torch.tensor([[9.0, 9.0, 0.0, 0.0], [0.0, 0.0, 50.0, 50.0], [0.0, 0.0, -50.0, -50.0]], requires_grad=True)
    value = loss.value(match(deltas, torch.zeros(3, 4), anchors))
    value.backward()
    assert value.isfinite()
    assert deltas.grad.isfinite().all()


def test_quality_gives_no_gradient():
    deltas = torch.tensor([[0.2, 0.0, 0.1, 0.0]], requires_grad=True)
    matched = match(deltas, torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    weighted, = torch.autograd.grad(IoULoss(by_quality=True).value(matched) * matched.total_quality, deltas,
                                    retain_graph=True)  # fmt: skip
    (plain,) = torch.autograd.grad(IoULoss().value(matched), deltas)
    torch.testing.assert_close(weighted, plain * matched.quality)
