"""Second stage of Faster R-CNN: class and exact box of each region.

Shapes: R regions of all images, P positive ones among them, C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.assignment import join_boxes
from sparsedet.detection.models.boxes import clip_boxes, encode_boxes
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.sampling import BalancedSampler
from sparsedet.detection.structures import Target

CLS_STD, BOX_STD = 0.01, 0.001  # of the predictors' initial weights


class RoIOutput(NamedTuple):
    """Raw predictions for R regions.

    Attributes:
        cls_logits: shape (R, C + 1); index 0 is background, class c has index c + 1.
        box_deltas: shape (R, (C + 1) * 4), channel index * 4 + k, in units of ``box_stds``.
    """

    cls_logits: Tensor
    box_deltas: Tensor


class RoISamples(NamedTuple):
    """The regions that the second stage is trained on.

    Attributes:
        rois: of each image, float32, shape (R of the image, 4), in pixels, positive ones first.
        classes: int64, shape (R,), 0 for background, else label + 1.
        positive: int64, shape (P,), which of the R regions are positive.
        deltas: float32, shape (P, 4), what `RoIOutput.box_deltas` should be there.
    """

    rois: list[Tensor]
    classes: Tensor
    positive: Tensor
    deltas: Tensor


class RoIHeadConfig(ConfigModel):
    """Pooling, box head and training of the second stage.

    Attributes:
        channels: of the two hidden layers.
        pool_size: cells along each side of a pooled region.
        sampling_ratio: samples per cell along each side; 0 takes one per cell of the feature map.
        num_levels: levels of the neck that regions are pooled from, the finest ones.
        base_scale: side in pixels of a square region that is on the border of the two finest levels.
        box_stds: units in which dx, dy, dw, dh are predicted.
        cls_weight: factor of ``cls_loss``.
        box_weight: factor of ``box_loss``.
        up_compat: in evaluation pool every region from every level and let the predictions compete, at
            `num_levels` times the work, as United-Perception does (up_semantics §7.6).
    """

    channels: PositiveInt = 1024
    pool_size: PositiveInt = 7
    sampling_ratio: NonNegativeInt = 0
    num_levels: PositiveInt = 4
    base_scale: PositiveFloat = 56.0
    assigner: MaxIoU = MaxIoU(positive_iou=0.5, negative_iou=0.5, low_quality=False)
    sampler: BalancedSampler = BalancedSampler(batch_size=512, positive_share=0.25)
    box_stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.1, 0.2, 0.2)
    cls_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    up_compat: bool = False

    def build(self, in_channels: int, num_classes: int) -> "BoxHead":
        """Build the box head for pooled maps of `in_channels` channels."""
        return BoxHead(self, in_channels, num_classes)

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target], legacy: bool) -> RoISamples:
        """Choose regions to train on among the proposals (P, 4) of each image and its true boxes.

        `legacy`: see `boxes`. Source: as United-Perception (up_semantics §5.3).
        """
        rois, classes, is_positive, deltas = [], [], [], []
        for found, target in zip(proposals, targets, strict=True):
            boxes, labels, _ = join_boxes([target], found.device, legacy)
            candidates = clip_boxes(torch.cat([found, boxes]), target.image_size, legacy)
            matches = self.assigner.match(candidates, boxes, target.ignore_xyxy.to(boxes))
            positive, background = self.sampler.sample(matches)
            matched = matches[positive]
            rois.append(candidates[torch.cat([positive, background])])
            classes.append(torch.cat([labels[matched] + 1, torch.zeros_like(background)]))
            is_positive.append(classes[-1] > 0)
            deltas.append(encode_boxes(boxes[matched], candidates[positive]))
        return RoISamples(
            rois,
            torch.cat(classes),
            torch.cat(is_positive).nonzero().squeeze(1),
            torch.cat(deltas) / deltas[0].new_tensor(self.box_stds),
        )

    def losses(self, output: RoIOutput, samples: RoISamples) -> dict[str, Tensor]:
        """Return ``cls_loss`` and ``box_loss``, float32 scalars.

        Both are sums over sampled regions (of all images) divided by their number, background included.
        """
        cls_loss = F.cross_entropy(output.cls_logits.float(), samples.classes, reduction="sum")
        deltas = output.box_deltas.float().view(*output.cls_logits.shape, 4)
        predicted = deltas[samples.positive, samples.classes[samples.positive]]
        box_loss = F.l1_loss(predicted, samples.deltas, reduction="sum")
        num_sampled = max(len(samples.classes), 1)
        return {
            "cls_loss": self.cls_weight * cls_loss / num_sampled,
            "box_loss": self.box_weight * box_loss / num_sampled,
        }


class BoxHead(nn.Module):
    """Two hidden layers, a class predictor and a box predictor for each class.

    Source: Lin et al. 2017 (arXiv:1612.03144), sec. 4.2; initialisation as United-Perception (up_semantics §2.5).
    """

    def __init__(self, config: RoIHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        in_features = in_channels * config.pool_size**2
        self.fc1 = nn.Linear(in_features, config.channels)
        self.fc2 = nn.Linear(config.channels, config.channels)
        self.cls_pred = nn.Linear(config.channels, num_classes + 1)
        self.box_pred = nn.Linear(config.channels, (num_classes + 1) * 4)
        deviations = (math.sqrt(1 / in_features), math.sqrt(1 / config.channels), CLS_STD, BOX_STD)
        for layer, std in zip((self.fc1, self.fc2, self.cls_pred, self.box_pred), deviations, strict=True):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> RoIOutput:
        """Return the raw predictions for pooled regions (R, in_channels, pool_size, pool_size)."""
        hidden = F.relu(self.fc1(pooled.flatten(1)), inplace=True)
        hidden = F.relu(self.fc2(hidden), inplace=True)
        return RoIOutput(self.cls_pred(hidden), self.box_pred(hidden))
