"""What an assigner answers: which anchor, or other candidate box, is responsible for which box.

Shapes: B images, A anchors of all levels, N boxes of all images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedet.detection.structures import Target

BACKGROUND = -1
IGNORED = -2


class Assignment(NamedTuple):
    """What each anchor has to predict.

    Attributes:
        matches: int64, shape (B, A): row of `boxes_xyxy` and `labels`, or BACKGROUND, or IGNORED.
        boxes_xyxy: float32, shape (N, 4), the usable boxes of all images one after the other.
        labels: int64, shape (N,).
    """

    matches: Tensor
    boxes_xyxy: Tensor
    labels: Tensor


def join_boxes(targets: Sequence[Target], device: torch.device, legacy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the usable boxes of all images (N, 4), their labels (N,) and image indices (N,).

    Boxes without area are dropped; with `legacy` those whose width or height is at most one pixel.
    """
    boxes = torch.cat([target.boxes_xyxy for target in targets]).to(device)
    labels = torch.cat([target.labels for target in targets]).to(device)
    counts = torch.tensor([len(target.labels) for target in targets], device=device)
    images = torch.repeat_interleave(torch.arange(len(targets), device=device), counts)
    is_usable = (boxes[:, 2:] - boxes[:, :2] > float(legacy)).all(dim=1)
    return boxes[is_usable], labels[is_usable], images[is_usable]
