"""Adaptive training sample selection: which anchor answers for which box.

Shapes: B images, A anchors of all levels, N boxes of all images, K candidates of a box.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.assignment import BACKGROUND, IGNORED, Assignment, join_boxes
from sparsedet.detection.models.boxes import centres, depth_inside, paired_iou
from sparsedet.detection.structures import Target

MIN_DEPTH_PX = 0.01  # how far inside its box the centre of a positive anchor lies


class ATSS(ConfigModel):
    """Adaptive training sample selection.

    Candidates of a box are, on each level, the `top_n` anchors nearest to its centre, in the order of
    (distance, anchor index), so that every device picks the same ones. A candidate is positive when its IoU
    reaches mean + standard deviation over the candidates and its centre lies inside the box; an anchor wanted
    by several boxes goes to the one of highest IoU. Other anchors are background, or ignored when their
    centre lies in an ignore region.

    Source: Zhang et al. 2020 (arXiv:1912.02424), sec. 3; details as United-Perception (up_semantics §5.2).
    Ours keeps positive anchors inside ignore regions unless `ignore_overrides_positives`, and honours ignore
    regions in images without boxes.

    Attributes:
        top_n: candidates per box and level, usually 9 times the number of anchors per cell.
        ignore_overrides_positives: ignore regions win over positive anchors, as in United-Perception.
    """

    type: Literal["atss"] = "atss"
    top_n: PositiveInt = 18
    ignore_overrides_positives: bool = False

    @torch.no_grad()
    def assign(self, anchors: Sequence[Tensor], targets: Sequence[Target], legacy: bool) -> Assignment:
        """Assign the anchors of all levels, each of shape (A of the level, 4), to the boxes of B images.

        `legacy`: see `boxes`.
        """
        all_anchors = torch.cat(list(anchors))
        pixel = 1.0 if legacy else 0.0
        boxes, labels, images = join_boxes(targets, all_anchors.device, legacy)
        matches = torch.full((len(targets) * len(all_anchors),), BACKGROUND, device=boxes.device)
        if len(boxes):
            candidates = self._candidates(anchors, centres(boxes))
            found = all_anchors[candidates]
            iou = paired_iou(found, boxes[:, None])
            threshold = iou.mean(dim=1, keepdim=True) + iou.std(dim=1, keepdim=True)
            is_inside = depth_inside(centres(found), boxes[:, None]) > MIN_DEPTH_PX + pixel / 2
            rows, columns = ((iou >= threshold) & is_inside).nonzero(as_tuple=True)
            slots = images[rows] * len(all_anchors) + candidates[rows, columns]
            _settle(matches, slots, rows, iou[rows, columns])
        matches = matches.view(len(targets), len(all_anchors))
        self._ignore(matches, centres(all_anchors), targets, pixel / 2)
        return Assignment(matches, boxes, labels)

    def _candidates(self, anchors: Sequence[Tensor], box_centres: Tensor) -> Tensor:
        """Return the indices, shape (N, K), of each box's nearest anchors on every level."""
        chosen = []
        first = 0
        for level_anchors in anchors:
            offsets = centres(level_anchors) - box_centres[:, None]
            distance = (offsets * offsets).sum(dim=-1)
            # non-negative floats order like their bits: (distance, index) becomes one integer without ties
            index = torch.arange(len(level_anchors), device=distance.device)
            key = (distance.view(torch.int32).long() << 32) | index
            nearest = key.topk(min(self.top_n, len(level_anchors)), dim=1, largest=False).indices
            chosen.append(nearest + first)
            first += len(level_anchors)
        return torch.cat(chosen, dim=1)

    def _ignore(self, matches: Tensor, points: Tensor, targets: Sequence[Target], margin: float) -> None:
        """Mark in place the anchors whose centre lies more than `margin` pixels inside an ignore region."""
        for row, target in zip(matches, targets, strict=True):
            if len(target.ignore_xyxy):
                regions = target.ignore_xyxy.to(points)
                is_ignored = (depth_inside(points, regions[:, None]) > margin).any(dim=0)
                if not self.ignore_overrides_positives:
                    is_ignored &= row == BACKGROUND
                row[is_ignored] = IGNORED


def _settle(matches: Tensor, slots: Tensor, rows: Tensor, iou: Tensor) -> None:
    """Give in place each anchor, a slot of `matches`, to the first box of highest IoU that wants it."""
    best = iou.new_zeros(len(matches)).scatter_reduce(0, slots, iou, "amax")
    is_best = iou == best[slots]
    matches.scatter_reduce_(0, slots[is_best], rows[is_best], "amin", include_self=False)
