import pytest
import torch
from torchvision.ops import nms

from sparsedet.detection.models import roi_post_processing
from sparsedet.detection.models.boxes import clip_boxes, decode_boxes, encode_boxes
from sparsedet.detection.models.roi_head import RoIOutput
from sparsedet.detection.models.roi_post_processing import RoIPostProcessing

STDS = (0.1, 0.1, 0.2, 0.2)
SIZE = (100, 120)


def make_random(num_rois, num_classes, seed=0, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_rois, 2, generator=generator) * 70
    rois = torch.cat([corners, corners + 5 + 40 * torch.rand(num_rois, 2, generator=generator)], dim=1)
    logits = 2 * torch.randn(num_rois, num_classes + 1, generator=generator)
    deltas = spread * torch.randn(num_rois, (num_classes + 1) * 4, generator=generator)
    return RoIOutput(logits, deltas), rois


def select(output, rois, legacy=False, size=SIZE, **options):
    return RoIPostProcessing(**options).select(output, rois, STDS, size, legacy)


def plain(output, rois, threshold, nms_iou, number, legacy):
    """Class by class, everything at once."""
    scores = output.cls_logits.softmax(dim=1)
    rows = []
    for index in range(1, scores.shape[1]):
        deltas = output.box_deltas[:, 4 * index : 4 * index + 4] * torch.tensor(STDS)
        boxes = clip_boxes(decode_boxes(deltas, rois), SIZE, legacy)
        chosen = (scores[:, index] > threshold).nonzero()[:, 0]
        for row in chosen[nms(boxes[chosen].double(), scores[chosen, index].double(), nms_iou)].tolist():
            rows.append((scores[row, index].item(), index - 1, boxes[row].tolist()))
    rows.sort(key=lambda row: -row[0])
    return rows[:number]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("threshold", "nms_iou", "number"), [
    (0.0, 0.5, 100), (0.0, 0.05, 100), (0.0, 0.5, 10**6), (0.2, 0.5, 100), (0.0, 0.3, 7),
])  # fmt: skip
def test_detections_equal_a_plain_loop(threshold, nms_iou, number, legacy):
    output, rois = make_random(300, 6)
    found = select(output, rois, legacy, score_threshold=threshold, nms_iou=nms_iou, max_detections=number)
    expected = plain(output, rois, threshold, nms_iou, number, legacy)
    assert len(expected) == min(number, len(expected)) > 6
    assert found.labels.tolist() == [row[1] for row in expected]
    torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in expected]))
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([row[2] for row in expected]))
    assert found.labels.dtype == torch.int64


def test_more_candidates_are_tried_while_detections_are_missing(monkeypatch):
    monkeypatch.setattr(roi_post_processing, "FIRST_CANDIDATES", 1)
    monkeypatch.setattr(roi_post_processing, "MORE_CANDIDATES", 2)
    output, rois = make_random(200, 3, spread=0.0)
    rois = rois[:20].repeat(10, 1)  # nine of ten fall to NMS
    found = select(output, rois, nms_iou=0.9, max_detections=50)
    expected = plain(output, rois, 0.0, 0.9, 50, legacy=False)
    assert len(found.scores) == 50
    torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in expected]))
    assert found.labels.tolist() == [row[1] for row in expected]


def test_background_is_no_class_and_each_class_has_its_box():
    roi = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    boxes = torch.tensor([[0.0, 0.0, 99.0, 99.0], [10.0, 10.0, 30.0, 40.0], [12.0, 8.0, 36.0, 30.0]])
    deltas = (encode_boxes(boxes, roi.expand(3, 4)) / torch.tensor(STDS)).view(1, 12)
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    found = select(RoIOutput(logits, deltas), roi)
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, logits.softmax(dim=1)[0, [2, 1]])
    torch.testing.assert_close(found.boxes_xyxy, boxes[[2, 1]])


def test_boxes_are_clipped_and_dropped_when_nothing_is_left():
    rois = torch.tensor([[100.0, 50.0, 150.0, 130.0], [130.0, 10.0, 140.0, 20.0]])
    output = RoIOutput(torch.tensor([[0.0, 9.0], [0.0, 8.0]]), torch.zeros(2, 8))
    assert select(output, rois).boxes_xyxy.tolist() == [[100, 50, 120, 100]]
    assert select(output, rois, legacy=True).boxes_xyxy.tolist() == [[100, 50, 120, 100], [119, 10, 120, 20]]


@pytest.mark.parametrize("num_rois", [0, 3])
def test_nothing_found(num_rois):
    output = RoIOutput(torch.tensor([[9.0, 0.0, 0.0]]).repeat(num_rois, 1), torch.zeros(num_rois, 12))
    found = select(output, torch.tensor([[1.0, 1.0, 9.0, 9.0]]).repeat(num_rois, 1), score_threshold=0.5)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_half_precision_predictions_are_widened_first():
    output, rois = make_random(50, 4)
    lowered = RoIOutput(output.cls_logits.bfloat16(), output.box_deltas.bfloat16())
    found = select(lowered, rois)
    exact = select(RoIOutput(*(x.float() for x in lowered)), rois)
    assert found.scores.dtype == found.boxes_xyxy.dtype == torch.float32
    assert torch.equal(found.scores, exact.scores)
    assert torch.equal(found.boxes_xyxy, exact.boxes_xyxy)
