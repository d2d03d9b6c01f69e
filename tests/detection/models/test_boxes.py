import pytest
import torch
from torchvision.ops import box_iou

from sparsedet.detection.models.boxes import (
    centres,
    clip_boxes,
    decode_boxes,
    depth_inside,
    encode_boxes,
    paired_iou,
)

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones


@pytest.fixture(scope="module")
def units(golden):
    return golden("golden_units.npz")


def test_encoding_equals_ups(units):
    deltas = encode_boxes(units["code_gt"] + ONE_PIXEL, units["code_boxes"] + ONE_PIXEL)
    torch.testing.assert_close(deltas, units["code_bbox2offset"], rtol=1e-5, atol=1e-5)


def test_decoding_equals_ups_and_limits_the_sides(units):
    boxes = decode_boxes(units["code_offset_in"], units["code_boxes"] + ONE_PIXEL)
    torch.testing.assert_close(boxes - ONE_PIXEL, units["code_offset2bbox"], rtol=1e-5, atol=1e-3)
    assert units["code_offset_in"].max() == 9.0  # the golden holds a delta beyond the limit
    largest = decode_boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([[0.0, 0.0, 16.0, 8.0]]))
    assert (largest[:, 2:] - largest[:, :2]).tolist() == [[pytest.approx(1000), pytest.approx(500)]]


def test_decoding_inverts_encoding():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 8.0], [4.0, -3.0, 9.5, 20.0]])
    boxes = torch.tensor([[3.0, 1.0, 10.0, 5.0], [-4.0, 3.0, 40.5, 41.0]])
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes)


def test_iou_equals_torchvisions_and_ups(units):
    first, second = units["code_boxes"] + ONE_PIXEL, units["code_gt"] + ONE_PIXEL
    torch.testing.assert_close(paired_iou(first, second), units["code_iou_aligned"])
    torch.testing.assert_close(paired_iou(first[:, None], second), box_iou(first, second))


def test_iou_of_empty_boxes_is_zero():
    empty = torch.zeros(1, 4)
    assert paired_iou(empty, empty).item() == 0


@pytest.mark.parametrize(
    ("point", "depth"),
    [((5.0, 4.0), 2.0), ((1.0, 4.0), 0.0), ((0.0, 4.0), -1.0), ((5.0, 9.0), -3.0)],
)
def test_depth_inside(point, depth):
    assert depth_inside(torch.tensor(point), torch.tensor([1.0, 2.0, 11.0, 6.0])).item() == depth


def test_centres():
    assert centres(torch.tensor([[0.0, 2.0, 10.0, 3.0]])).tolist() == [[5.0, 2.5]]


def test_clipping_with_continuous_corners_may_leave_nothing():
    boxes = torch.tensor([[-5.0, 10.0, 400.0, 90.0], [310.0, 5.0, 320.0, 9.0]])
    expected = [[0.0, 10.0, 300.0, 90.0], [300.0, 5.0, 300.0, 9.0]]
    assert clip_boxes(boxes, (240, 300), legacy=False).tolist() == expected


def test_legacy_clipping_equals_ups(units):
    boxes = units["code_offset2bbox"] + ONE_PIXEL
    clipped = clip_boxes(boxes, (240, 300), legacy=True)
    torch.testing.assert_close(clipped - ONE_PIXEL, units["code_clip_240x300"], rtol=0, atol=1e-4)


def test_legacy_clipping_leaves_a_pixel_on_every_side():
    outside = torch.tensor([[-30.0, -20.0, -5.0, -1.0], [310.0, 250.0, 320.0, 260.0]])
    expected = [[0.0, 0.0, 1.0, 1.0], [299.0, 239.0, 300.0, 240.0]]
    assert clip_boxes(outside, (240, 300), legacy=True).tolist() == expected
