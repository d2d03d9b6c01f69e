import pytest
import torch
from torchvision.ops import generalized_box_iou

from sparsedet.detection.models.boxes import decode_boxes
from sparsedet.detection.models.losses import GIoULoss, QualityFocalLoss

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones


@pytest.fixture(scope="module")
def units(golden):
    return golden("golden_units.npz")


@pytest.fixture(scope="module")
def expected(golden):
    return golden("golden_units.json")["losses"]


def assert_gradient(gradient, summary):
    assert gradient.abs().sum().item() == pytest.approx(summary["grad_abs_sum"], rel=1e-5)
    probes = gradient.flatten()[summary["grad_probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(summary["grad_probe"]), rtol=1e-4, atol=1e-6)


def test_quality_focal_loss_equals_ups(units, expected):
    logits = units["loss_logits"].flatten(0, 1).requires_grad_()
    target = units["loss_target"].flatten().long()
    positive = (target > 0).nonzero()[:, 0]
    quality = units["loss_scores"].flatten()[positive]
    loss = QualityFocalLoss(gamma=2.0).sum(logits, target >= 0, positive, target[positive] - 1, quality)
    loss = loss / expected["n_pos"]
    loss.backward()
    assert loss.item() == pytest.approx(expected["quality_focal_loss"]["value"], rel=1e-5)
    assert_gradient(logits.grad, expected["quality_focal_loss"])
    assert (logits.grad[target < 0] == 0).all()


def test_giou_loss_equals_ups(units, expected):
    deltas = (0.3 * units["loc_pred"]).requires_grad_()
    anchors = units["loc_anchor"] + ONE_PIXEL
    target = decode_boxes(0.3 * units["loc_target"], anchors)
    loss = GIoULoss().sum(decode_boxes(deltas, anchors), target) / len(anchors)
    loss.backward()
    assert loss.item() == pytest.approx(expected["iou_loss_giou"]["value"], rel=1e-5)
    assert_gradient(deltas.grad, expected["iou_loss_giou"])


def test_giou_loss_is_one_minus_torchvisions_giou():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [10.0, 10.0, 12.0, 11.0]])
    targets = torch.tensor([[1.0, 1.0, 5.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
    expected = (1 - generalized_box_iou(boxes, targets).diagonal()).sum()
    torch.testing.assert_close(GIoULoss(weight=3.0).sum(boxes, targets), 3 * expected)


def test_without_positive_anchors_the_losses_stay_in_the_graph():
    logits = torch.zeros(5, 3, requires_grad=True)
    boxes = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = QualityFocalLoss().sum(logits, torch.ones(5, dtype=torch.bool), none, none, torch.zeros(0))
    (loss + GIoULoss().sum(boxes, boxes.detach())).backward()
    assert logits.grad.abs().sum() > 0
    assert boxes.grad.shape == (0, 4)


def test_weight_scales_quality_focal_loss():
    logits = torch.tensor([[0.3, -1.0]])
    one, index, quality = torch.ones(1, dtype=torch.bool), torch.tensor([0]), torch.tensor([0.7])
    single = QualityFocalLoss().sum(logits, one, index, index, quality)
    torch.testing.assert_close(QualityFocalLoss(weight=2.5).sum(logits, one, index, index, quality), 2.5 * single)
