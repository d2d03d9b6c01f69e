"""Region proposals: the first stage of Faster R-CNN, which says where objects may be, whatever their class.

Shapes: B images, A anchors of a level or of all levels, P proposals of an image, (H, W) cells of a level.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.anchors import Anchors, per_anchor
from sparsedet.detection.models.boxes import decode_boxes, encode_boxes
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.sampling import BalancedSampler
from sparsedet.detection.models.suppression import clip_and_suppress
from sparsedet.detection.structures import Target


class RPNOutput(NamedTuple):
    """Raw predictions of one level, with a anchors per cell.

    Attributes:
        cls_logits: shape (B, a, H, W), object or not.
        box_deltas: shape (B, a * 4, H, W), channel anchor * 4 + k; see `boxes.decode_boxes`.
    """

    cls_logits: Tensor
    box_deltas: Tensor


class RPNConfig(ConfigModel):
    """A region proposal network and how it is trained.

    Attributes:
        channels: of its convolution; null takes the neck's.
        nms_iou: of two proposals of a level that overlap more, the one of lower score is dropped.
        train_top_n: anchors kept before NMS, per level, while training.
        test_top_n: the same for inference.
        train_proposals: proposals per image while training.
        test_proposals: the same for inference.
        cls_weight: factor of ``rpn_cls_loss``.
        box_weight: factor of ``rpn_box_loss``.
        init_std: standard deviation of the initial weights.
    """

    channels: PositiveInt | None = None
    anchors: Anchors = Anchors(scales=(8.0,), ratios=(0.5, 1.0, 2.0))
    assigner: MaxIoU = MaxIoU(positive_iou=0.7, negative_iou=0.3, low_quality=True)
    sampler: BalancedSampler = BalancedSampler(batch_size=256, positive_share=0.5)
    nms_iou: float = Field(default=0.7, gt=0, le=1)
    train_top_n: PositiveInt = 2000
    test_top_n: PositiveInt = 1000
    train_proposals: PositiveInt = 1000
    test_proposals: PositiveInt = 1000
    cls_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    init_std: PositiveFloat = 0.01

    def build(self, in_channels: int, finest_stride: int, legacy: bool) -> "RPN":
        """Build the network for maps of `in_channels` channels, the finest one of `finest_stride` pixels.

        Raises:
            ConfigError: nothing is left of anchors whose sides are rounded.
        """
        self.anchors.base(finest_stride, legacy)  # fails where the smallest ones vanish
        return RPN(self, in_channels, finest_stride, legacy)


class RPN(nn.Module):
    """One 3x3 convolution and two predictors, shared by all levels, and what becomes of their outputs.

    Source: Ren et al. 2015 (arXiv:1506.01497), sec. 3.1; losses as United-Perception (up_semantics §6).
    """

    def __init__(self, config: RPNConfig, in_channels: int, finest_stride: int, legacy: bool) -> None:
        super().__init__()
        self.config = config
        self.finest_stride = finest_stride
        self.legacy = legacy
        channels = config.channels or in_channels
        num_anchors = config.anchors.num_per_cell
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls_pred = nn.Conv2d(channels, num_anchors, 1)
        self.box_pred = nn.Conv2d(channels, num_anchors * 4, 1)
        for conv in (self.conv, self.cls_pred, self.box_pred):
            nn.init.normal_(conv.weight, std=config.init_std)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, features: Sequence[Tensor]) -> tuple[RPNOutput, ...]:
        """Return the raw predictions of each level, in the order of `features`."""
        hidden = [F.relu(self.conv(x), inplace=True) for x in features]
        return tuple(RPNOutput(self.cls_pred(x), self.box_pred(x)) for x in hidden)

    def anchors(self, outputs: Sequence[RPNOutput]) -> list[Tensor]:
        """Return the anchors of each level of `outputs`, float32, shape (A, 4), in pixels."""
        return self.config.anchors.grids([output.cls_logits for output in outputs], self.finest_stride, self.legacy)

    def losses(self, outputs: Sequence[RPNOutput], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return ``rpn_cls_loss`` and ``rpn_box_loss``, float32 scalars.

        Both are sums over sampled anchors (of all images) divided by their number, background included.
        """
        anchors = self.anchors(outputs)
        all_anchors = torch.cat(anchors)
        assignment = self.config.assigner.assign(anchors, targets, self.legacy)
        chosen = [self.config.sampler.sample(matches) for matches in assignment.matches]
        first = [image * len(all_anchors) for image in range(len(chosen))]
        positive = torch.cat([start + pair[0] for start, pair in zip(first, chosen, strict=True)])
        background = torch.cat([start + pair[1] for start, pair in zip(first, chosen, strict=True)])
        sampled = torch.cat([positive, background])
        logits = torch.cat([per_anchor(output.cls_logits, 1) for output in outputs], dim=1).flatten()
        deltas = torch.cat([per_anchor(output.box_deltas, 4) for output in outputs], dim=1).flatten(0, 1)
        is_object = (torch.arange(len(sampled), device=logits.device) < len(positive)).float()
        cls_loss = F.binary_cross_entropy_with_logits(logits[sampled], is_object, reduction="sum")
        true_boxes = assignment.boxes_xyxy[assignment.matches.flatten()[positive]]
        true_deltas = encode_boxes(true_boxes, all_anchors[positive % len(all_anchors)])
        box_loss = F.l1_loss(deltas[positive], true_deltas, reduction="sum")
        num_sampled = max(len(sampled), 1)
        return {
            "rpn_cls_loss": self.config.cls_weight * cls_loss / num_sampled,
            "rpn_box_loss": self.config.box_weight * box_loss / num_sampled,
        }

    @torch.no_grad()
    def proposals(
        self, outputs: Sequence[RPNOutput], image_sizes: Sequence[tuple[int, int]], top_n: int, number: int
    ) -> list[Tensor]:
        """Return the best boxes of each image by falling score, float32, shape (P, 4), in pixels, P <= `number`.

        Args:
            outputs: what `forward` returned.
            image_sizes: (height, width) in pixels of each image without its padding, to which boxes are clipped.
            top_n: anchors kept before NMS, per level.
            number: proposals kept after NMS, per image.
        """
        logits, boxes, levels = [], [], []
        for level, (output, anchors) in enumerate(zip(outputs, self.anchors(outputs), strict=True)):
            level_logits = per_anchor(output.cls_logits, 1).squeeze(2)
            best, index = level_logits.topk(min(top_n, len(anchors)), dim=1)
            deltas = per_anchor(output.box_deltas, 4).gather(1, index[..., None].expand(-1, -1, 4))
            logits.append(best)
            boxes.append(decode_boxes(deltas, anchors[index]))
            levels.append(torch.full_like(index[0], level))
        level_of = torch.cat(levels)
        return [
            clip_and_suppress(found, ranks, level_of, size, self.config.nms_iou, self.legacy)[0][:number]
            for found, ranks, size in zip(torch.cat(boxes, dim=1), torch.cat(logits, dim=1), image_sizes, strict=True)
        ]
