import pytest
import torch
from torchvision.ops import nms

from sparsedet.detection.models.boxes import encode_boxes
from sparsedet.detection.models.post_processing import PostProcessing


def select(boxes, scores, image_size=(100, 100), legacy=False, **options):
    """Post-process one level whose anchors decode to `boxes`."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).repeat(len(boxes), 1)
    deltas = encode_boxes(boxes, anchors)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    return PostProcessing(**options).select([scores], [deltas], [anchors], image_size, legacy)


FAR_APART = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]


def test_detections_fall_by_score_and_pass_the_threshold():
    found = select(FAR_APART, [[0.3, 0.04], [0.05, 0.6], [0.2, 0.0]], score_threshold=0.05)
    assert found.scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor(FAR_APART, dtype=torch.float32)[[1, 0, 2]])


def test_only_the_best_of_each_class_and_level_are_kept():
    found = select(FAR_APART, [[0.9, 0.5], [0.8, 0.6], [0.7, 0.7]], top_n=1)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_max_detections_counts_all_classes():
    found = select(FAR_APART, [[0.9, 0.5], [0.8, 0.6], [0.7, 0.75]], max_detections=3)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.75])


@pytest.mark.parametrize(("num_anchors", "up_compat", "is_filtered"), [
    (120, True, False),
    (121, True, True),
    (120, False, True),
    (1, True, False),
])  # fmt: skip
def test_up_applies_the_threshold_only_to_levels_of_more_than_120_anchors(num_anchors, up_compat, is_filtered):
    boxes = torch.arange(num_anchors)[:, None] * 4.0 + torch.tensor([0.0, 0.0, 3.0, 3.0])
    scores = torch.linspace(0, 0.3, num_anchors)[:, None]
    options = {"image_size": (999, 999), "score_threshold": 0.2, "max_detections": 999, "up_compat": up_compat}
    found = select(boxes, scores, **options)
    expected = scores[scores > 0.2] if is_filtered else scores[:, 0]
    assert found.scores.tolist() == expected.tolist()[::-1]


def test_up_judges_each_level_by_its_own_number_of_anchors():
    boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    deltas = torch.zeros(121, 4)
    fine = boxes + 4 * torch.arange(121)[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    coarse = boxes + torch.tensor([0.0, 5.0, 0.0, 5.0])
    levels = [torch.full((121, 1), 0.1), torch.full((1, 1), 0.1)], [deltas, deltas[:1]], [fine, coarse]
    found = PostProcessing(score_threshold=0.2, up_compat=True).select(*levels, (9, 999), False)
    assert found.boxes_xyxy.tolist() == [[0.0, 5.0, 3.0, 8.0]]
    assert len(PostProcessing(score_threshold=0.2).select(*levels, (9, 999), False).scores) == 0


def test_nms_equals_ups(golden):
    units = golden("golden_units.npz")
    boxes, scores = units["nms_in"][:, :4] + torch.tensor([0.0, 0.0, 1.0, 1.0]), units["nms_in"][:, 4:]
    found = select(boxes, scores, (999, 999), legacy=True, score_threshold=0.0, nms_iou=0.5, max_detections=999)
    kept = units["nms_keep_0.5_unsorted__SUBSTITUTED_KERNEL"].long()
    torch.testing.assert_close(found.scores, scores[kept, 0])
    torch.testing.assert_close(found.boxes_xyxy, boxes[kept], rtol=0, atol=1e-3)


def test_nms_works_within_a_class_only():
    overlapping = [[0, 0, 10, 10], [0, 0, 10, 9]]
    found = select(overlapping, [[0.9, 0.0], [0.8, 0.7]], nms_iou=0.5)
    assert list(zip(found.labels.tolist(), found.scores.tolist(), strict=True)) == [
        (0, pytest.approx(0.9)),
        (1, pytest.approx(0.7)),
    ]


def test_nms_equals_torchvisions_class_by_class():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(300, 2, generator=generator)], dim=1)
    scores = torch.rand(300, 90, generator=generator)
    found = select(boxes, scores, score_threshold=0.5, max_detections=10**6)
    for label in (0, 45, 89):
        candidates = (scores[:, label] > 0.5).nonzero()[:, 0]
        kept = candidates[nms(boxes[candidates], scores[candidates, label], 0.5)]
        ours = found.scores[found.labels == label]
        assert torch.equal(ours, scores[kept, label])


def test_boxes_are_clipped_and_dropped_when_nothing_is_left():
    found = select([[-10, 5, 20, 200], [120, 10, 140, 30]], [[0.9], [0.8]], image_size=(100, 90))
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[0.0, 5.0, 20.0, 100.0]]))


def test_legacy_keeps_a_pixel_of_boxes_outside():
    found = select([[120, 10, 140, 30]], [[0.8]], image_size=(100, 90), legacy=True)
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[89.0, 10.0, 90.0, 30.0]]))


def test_levels_may_have_fewer_anchors_than_top_n_and_share_boxes():
    fine = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [16.0, 0.0, 24.0, 8.0]])
    levels = [torch.tensor([[0.7], [0.6], [0.5]]), torch.tensor([[0.9]])], [torch.zeros(3, 4), torch.zeros(1, 4)]
    found = PostProcessing(top_n=2).select(*levels, [fine, fine[:1]], (99, 99), False)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))  # 0.7 is suppressed, 0.5 is third of its level


def test_nothing_above_the_threshold():
    found = select(FAR_APART, [[0.0]] * 3)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
