"""Non-maximum suppression in groups, such as classes or levels.

Shapes: N boxes.
"""

from torch import Tensor
from torchvision.ops import batched_nms

from sparsedet.detection.models.boxes import clip_boxes


def clip_and_suppress(
    boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, image_size: tuple[int, int], nms_iou: float, legacy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip boxes to their image and return those that NMS within each group leaves, with scores and groups, best first.

    Args:
        boxes_xyxy: float32, shape (N, 4), in pixels.
        scores: float32, shape (N,); any numbers that rank the boxes.
        groups: int64, shape (N,); boxes of different groups do not suppress each other.
        image_size: (height, width) in pixels.
        nms_iou: of two boxes of a group that overlap more, the one of lower score is dropped.
        legacy: see `boxes`.
    """
    boxes = clip_boxes(boxes_xyxy, image_size, legacy)
    is_left = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # nothing remains of boxes outside the image
    boxes, scores, groups = boxes[is_left], scores[is_left], groups[is_left]
    # float64: torchvision moves groups apart by large offsets, which cost float32 boxes their fractions
    keep = batched_nms(boxes.double(), scores.double(), groups, nms_iou)
    return boxes[keep], scores[keep], groups[keep]
