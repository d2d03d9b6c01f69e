"""The two values that detector, data and evaluation hand to each other.

Shapes: N boxes, K ignore regions.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What is to be found in one image, in the pixels of the image that the network sees.

    Attributes:
        boxes_xyxy: float32, shape (N, 4), absolute pixels, continuous corners.
        labels: int64, shape (N,), in 0..C-1 without background.
        ignore_xyxy: float32, shape (K, 4), regions where detections are neither right nor wrong (crowds).
        image_size: (height, width) of the image before padding to the batch, in pixels.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    ignore_xyxy: Tensor
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes_xyxy: float32, shape (N, 4), absolute pixels, continuous corners.
        scores: float32, shape (N,), in [0, 1].
        labels: int64, shape (N,), in 0..C-1 without background.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
