"""Assignment by the highest IoU: the rule of RetinaNet, of region proposals and of second stages.

Shapes: B images, A anchors or other candidates, N boxes, K ignore regions.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.assignment import BACKGROUND, IGNORED, Assignment, join_boxes
from sparsedet.detection.models.boxes import paired_iou
from sparsedet.detection.structures import Target

BEST_TOLERANCE = 1e-3  # anchors whose IoU with a box is this close to the box's best one count as its best
BOXES_AT_ONCE = 16  # bounds the memory for intermediate values, several times the matrix of IoUs if all at once


class MaxIoU(ConfigModel):
    """Thresholds on an anchor's highest IoU, whatever the number of anchors that a box gets.

    An anchor is positive when its best IoU exceeds `positive_iou`, background when it is below `negative_iou`,
    ignored in between, and belongs to its box of highest IoU (the first one on ties). Anchors that are not
    positive are ignored where more than `ignore_iou` of their area lies in an ignore region.

    Source: Ren et al. 2015 (arXiv:1506.01497), sec. 3.1.2; details as United-Perception (up_semantics §5.1).

    Attributes:
        positive_iou: positive anchors have a higher IoU.
        negative_iou: background anchors have a lower IoU.
        ignore_iou: share of an anchor's area in one ignore region, above which it is ignored.
        low_quality: the anchors that come nearest to a box are positive even below `positive_iou`, each for
            its *own* best box, which may be another one.
        low_quality_iou: they need a higher IoU than this.
        up_compat: with `low_quality_iou` 0, a box that no anchor overlaps makes all anchors that do not overlap
            it positive, as in United-Perception.
    """

    type: Literal["max_iou"] = "max_iou"
    positive_iou: float = Field(gt=0, le=1)
    negative_iou: float = Field(gt=0, le=1)
    ignore_iou: float = Field(default=0.5, ge=0, le=1)
    low_quality: bool
    low_quality_iou: float = Field(default=0.0, ge=0, lt=1)
    up_compat: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou: expected at most positive_iou={self.positive_iou}, got {self.negative_iou}. Lower it."
            )
        return self

    @torch.no_grad()
    def assign(self, anchors: Sequence[Tensor], targets: Sequence[Target], legacy: bool) -> Assignment:
        """Assign the anchors of all levels, each of shape (A of the level, 4), to the boxes of B images.

        `legacy`: see `boxes`.
        """
        all_anchors = torch.cat(list(anchors))
        boxes, labels, images = join_boxes(targets, all_anchors.device, legacy)
        matches = []
        first = 0
        for target, count in zip(targets, images.bincount(minlength=len(targets)).tolist(), strict=True):
            match = self.match(all_anchors, boxes[first : first + count], target.ignore_xyxy.to(all_anchors))
            matches.append(torch.where(match >= 0, match + first, match))
            first += count
        return Assignment(torch.stack(matches), boxes, labels)

    @torch.no_grad()
    def match(self, candidates_xyxy: Tensor, boxes_xyxy: Tensor, ignore_xyxy: Tensor) -> Tensor:
        """Return for each candidate of one image the row of its box, BACKGROUND or IGNORED; int64, shape (A,).

        Args:
            candidates_xyxy: float32, shape (A, 4): anchors or proposals.
            boxes_xyxy: float32, shape (N, 4), all usable.
            ignore_xyxy: float32, shape (K, 4).
        """
        matches = torch.full((len(candidates_xyxy),), BACKGROUND, device=candidates_xyxy.device)
        if len(boxes_xyxy) and len(candidates_xyxy):
            parts = torch.split(boxes_xyxy[:, None], BOXES_AT_ONCE)
            iou = torch.cat([paired_iou(part, candidates_xyxy) for part in parts])
            best, row = iou.max(dim=0)
            matches[best >= self.negative_iou] = IGNORED
            is_positive = best > self.positive_iou
            if self.low_quality:
                is_positive |= self._is_nearest(iou)
            matches[is_positive] = row[is_positive]
        if len(ignore_xyxy):
            inside = _share_inside(candidates_xyxy, ignore_xyxy[:, None]).amax(dim=0)
            matches[(inside > self.ignore_iou) & (matches < 0)] = IGNORED
        return matches

    def _is_nearest(self, iou: Tensor) -> Tensor:
        """Return which candidates, shape (A,), are among the nearest to any box, given all IoUs (N, A)."""
        is_nearest = iou >= iou.amax(dim=1, keepdim=True) - BEST_TOLERANCE
        if self.low_quality_iou > 0 or not self.up_compat:
            is_nearest &= iou > self.low_quality_iou
        return is_nearest.any(dim=0)


def _share_inside(boxes_xyxy: Tensor, regions_xyxy: Tensor) -> Tensor:
    """Return the share of each box's area that lies in a region; (..., 4) and (..., 4) broadcast."""
    low = torch.maximum(boxes_xyxy[..., :2], regions_xyxy[..., :2])
    high = torch.minimum(boxes_xyxy[..., 2:], regions_xyxy[..., 2:])
    area = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(dim=-1)
    return (high - low).clamp(min=0).prod(dim=-1) / area.clamp(min=1e-7)
