"""An image and its boxes on their way through the transforms."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

IGNORE = -1  # label of a region where detections are neither right nor wrong


class SceneSource(Protocol):
    """The images of a split, as the files have them."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, index: int) -> "Scene":
        """Return one image with its boxes, untransformed."""


@dataclass(frozen=True)
class Scene:
    """An image and its N boxes. Transforms return a new one and never write into its tensors.

    Attributes:
        image: uint8, shape (3, H, W), RGB.
        boxes_xyxy: float32, shape (N, 4), pixels; objects and ignore regions.
        labels: int64, shape (N,), in 0..C-1, or `IGNORE`.
        others: the split that the image belongs to, for transforms that combine several images.
        inclusive_boxes: x2 and y2 are the last pixel of a box (United-Perception's convention); by default they are
            the edge behind it.
        is_mosaic: the image was put together from several.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    others: SceneSource
    inclusive_boxes: bool = False
    is_mosaic: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def has_objects(self) -> bool:
        """Whether there is a box that is no ignore region."""
        return bool((self.labels != IGNORE).any())

    def with_boxes(self, image: Tensor, boxes_xyxy: Tensor, labels: Tensor, keep: Tensor) -> "Scene":
        """Return the scene with another image, and those of the boxes (N, 4) where `keep` (N,) is True."""
        return replace(self, image=image, boxes_xyxy=boxes_xyxy[keep], labels=labels[keep])


def has_area(boxes_xyxy: Tensor) -> Tensor:
    """Return which boxes (N, 4) have a width and a height above 0, shape (N,)."""
    return (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)


def clip(boxes_xyxy: Tensor, width: float, height: float) -> Tensor:
    """Return boxes (N, 4) with x in [0, width] and y in [0, height]."""
    return boxes_xyxy.clamp(min=0).minimum(boxes_xyxy.new_tensor([width, height, width, height]))


def shift(boxes_xyxy: Tensor, x: float, y: float) -> Tensor:
    """Return boxes (N, 4) moved to the right and down, in pixels."""
    return boxes_xyxy + boxes_xyxy.new_tensor([x, y, x, y])


def scale(boxes_xyxy: Tensor, factor_x: float, factor_y: float) -> Tensor:
    """Return boxes (N, 4) with their corners multiplied, inclusive ones too, as United-Perception does."""
    return boxes_xyxy * torch.tensor([factor_x, factor_y, factor_x, factor_y])
