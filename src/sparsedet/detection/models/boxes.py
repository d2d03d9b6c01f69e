"""Box arithmetic that torchvision lacks. Boxes are x1, y1, x2, y2 in pixels, float32, continuous corners.

United-Perception computes with *inclusive* corners: a box of width w ends at x1 + w - 1, and "+ 1" appears
wherever a side is measured. Adding 1 to x2 and y2 turns such boxes into continuous ones and all those
formulas into the ordinary ones: encoding, decoding, IoU, GIoU and NMS are then the same. What remains of that
convention, where an argument `legacy` says so: base anchors have rounded sides, "inside a box" leaves out
half a pixel at its border, boxes of at most one pixel are dropped, and clipped boxes keep one pixel
(up_semantics §3–5).
"""

import math

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

MAX_LOG_RATIO = math.log(1000 / 16)  # decoded sides are at most 62.5 times the anchor's


def encode_boxes(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the deltas (dx, dy, dw, dh), shape (N, 4), that turn anchors (N, 4) into boxes (N, 4).

    Source: Girshick et al. 2014 (arXiv:1311.2524), appendix C.
    """
    centre, size = _centre_size(boxes_xyxy)
    anchor_centre, anchor_size = _centre_size(anchors_xyxy)
    return torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], dim=-1)


def decode_boxes(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the boxes (N, 4) that deltas (N, 4) make of anchors (N, 4); the inverse of `encode_boxes`."""
    centre, size = _centre_size(anchors_xyxy)
    centre = centre + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def paired_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Return the IoU of corresponding boxes; shapes (..., 4) broadcast against each other."""
    size1 = boxes1_xyxy[..., 2:] - boxes1_xyxy[..., :2]
    size2 = boxes2_xyxy[..., 2:] - boxes2_xyxy[..., :2]
    low = torch.maximum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    high = torch.minimum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    return overlap / (size1.prod(dim=-1) + size2.prod(dim=-1) - overlap).clamp(min=1e-7)


def depth_inside(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return how many pixels inside its box each point lies; (..., 2) and (..., 4) broadcast."""
    return torch.cat([points_xy - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points_xy], dim=-1).amin(dim=-1)


def centres(boxes_xyxy: Tensor) -> Tensor:
    """Return the centres, shape (..., 2), of boxes (..., 4)."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2


def clip_boxes(boxes_xyxy: Tensor, image_size: tuple[int, int], legacy: bool) -> Tensor:
    """Return boxes (N, 4) clipped to an image (height, width); `legacy` leaves at least one pixel of each."""
    if not legacy:
        return clip_boxes_to_image(boxes_xyxy, image_size)  # type: ignore[no-any-return]  # torchvision is untyped
    height, width = image_size
    pixel = boxes_xyxy.new_tensor([0, 0, 1, 1])
    return torch.minimum(boxes_xyxy.maximum(pixel), boxes_xyxy.new_tensor([width - 1, height - 1, width, height]))


def _centre_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return boxes_xyxy[..., :2] + size / 2, size
