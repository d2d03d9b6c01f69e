"""Regression losses of dense heads.

Shapes: P positive anchors of all images.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.boxes import paired_iou

MIN_IOU = 1e-6  # keeps the logarithm of the IoU of boxes that do not meet finite
MIN_SIDE_PX = 1e-3  # keeps the aspect ratio of boxes that rounding has left without a side finite
TORCHVISION_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


class Matched(NamedTuple):
    """What positive anchors predict beside what they ought to, and what sums over them are divided by.

    Attributes:
        boxes_xyxy: float32, shape (P, 4), predicted, in pixels.
        true_xyxy: float32, shape (P, 4).
        deltas: float32, shape (P, 4), predicted; see `boxes.encode_boxes`.
        true_deltas: float32, shape (P, 4).
        quality: float32, shape (P,), IoU of predicted and true box, without gradient.
        num_positive: scalar, the number of positive anchors, at least 1 over all processes together.
        total_quality: scalar, the sum of `quality`, at least 1 over all processes together.
    """

    boxes_xyxy: Tensor
    true_xyxy: Tensor
    deltas: Tensor
    true_deltas: Tensor
    quality: Tensor
    num_positive: Tensor
    total_quality: Tensor


class IoULoss(ConfigModel):
    """Loss on how predicted and true boxes overlap.

    Source: Yu et al. 2016 (arXiv:1608.01471) for ``iou``; Rezatofighi et al. 2019 (arXiv:1902.09630) for
    ``giou``; Zheng et al. 2020 (arXiv:1911.08287) for ``diou`` and ``ciou``; the last three by torchvision.

    Attributes:
        type: ``iou`` is the negative logarithm of the IoU, ``linear_iou`` one minus it; the others are one
            minus the generalised, the distance and the complete IoU.
        weight: factor of this loss in the total.
        by_quality: each box counts by the IoU it has reached, and the sum is divided by the sum of these IoUs
            instead of the number of positive anchors.
    """

    type: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    weight: NonNegativeFloat = 1.0
    by_quality: bool = False

    def value(self, matched: Matched) -> Tensor:
        """Return the weighted loss, a scalar; 0 without positive anchors."""
        loss = self._per_box(matched.boxes_xyxy, matched.true_xyxy)
        if self.by_quality:
            return self.weight * (loss * matched.quality).sum() / matched.total_quality
        return self.weight * loss.sum() / matched.num_positive

    def _per_box(self, boxes_xyxy: Tensor, true_xyxy: Tensor) -> Tensor:
        if self.type in TORCHVISION_LOSSES:
            low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
            boxes_xyxy = torch.cat([low, high.maximum(low + MIN_SIDE_PX)], dim=1)
            loss: Tensor = TORCHVISION_LOSSES[self.type](boxes_xyxy, true_xyxy, reduction="none")
            return loss
        iou = paired_iou(boxes_xyxy, true_xyxy)
        return -iou.clamp(min=MIN_IOU).log() if self.type == "iou" else 1 - iou


class L1Loss(ConfigModel):
    """Sum of the absolute differences of predicted and true deltas.

    Source: Girshick 2015 (arXiv:1504.08083), eq. 2, without its smoothing.

    Attributes:
        weight: factor of this loss in the total.
        mean: divide by the number of deltas (four for each positive anchor of this process) instead of the
            number of positive anchors, as United-Perception's ``retinanet-r18-improve_cos_iou`` does
            (up_semantics §6).
    """

    type: Literal["l1"] = "l1"
    weight: NonNegativeFloat = 1.0
    mean: bool = False

    def value(self, matched: Matched) -> Tensor:
        """Return the weighted loss, a scalar; 0 without positive anchors."""
        total = (matched.deltas - matched.true_deltas).abs().sum()
        return self.weight * total / (max(matched.deltas.numel(), 1) if self.mean else matched.num_positive)


BoxLoss = Annotated[IoULoss | L1Loss, Field(discriminator="type")]
