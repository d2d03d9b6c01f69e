"""Dense prediction head whose convolutions are shared by all levels.

Shapes: B images, C classes, A anchors per cell, (H, W) cells of a level.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models.norms import Norm, make_norm

PREDICTOR_STD = 0.01


class HeadOutput(NamedTuple):
    """Raw predictions of one level.

    Attributes:
        cls_logits: shape (B, A * C, H, W), channel a * C + c, or c * A + a where the head is class-major.
        box_deltas: shape (B, A * 4, H, W), channel a * 4 + k; see `boxes.decode_boxes`.
        iou_logits: shape (B, A, H, W), of the IoU of predicted and true box; None without an IoU branch.
    """

    cls_logits: Tensor
    box_deltas: Tensor
    iou_logits: Tensor | None = None


class RetinaHeadConfig(ConfigModel):
    """Two towers of 3x3 convolutions, one for classes and one for boxes, and a predictor on each.

    Attributes:
        channels: of the towers; null takes the neck's.
        num_convs: convolutions in each tower.
        norm: ``batch_norm`` gives every level its own statistics, weight and bias, ``sync_batch_norm`` too;
            ``none`` gives all levels one bias.
        sync_group_size: processes that share the statistics of ``sync_batch_norm``; null: all.
        prior: score that every class starts with.
        init_std: standard deviation of the towers' initial weights; null is He et al.'s for the width.
        iou_branch: a third predictor, on the box tower, of each box's IoU: scores are multiplied by it.
        class_major: order of the class logits' channels; see `HeadOutput`.
    """

    type: Literal["retina"] = "retina"
    channels: PositiveInt | None = None
    num_convs: int = Field(default=4, ge=0, le=64)
    norm: Norm = "batch_norm"
    sync_group_size: PositiveInt | None = None
    prior: float = Field(default=0.01, gt=0, lt=1)
    init_std: PositiveFloat | None = None
    iou_branch: bool = False
    class_major: bool = False

    def build(self, in_channels: int, num_levels: int, num_anchors: int, num_classes: int) -> "RetinaHead":
        """Build the head for maps of `in_channels` channels and `num_anchors` anchors per cell."""
        return RetinaHead(self, in_channels, num_levels, num_anchors, num_classes)


class SharedTower(nn.Module):
    """Convolutions shared by all levels, each with one batch norm per level, and ReLU.

    Names: ``convs.<i>`` is convolution i, ``norms.<i>.<l>`` its norm for the l-th level.
    """

    def __init__(self, config: RetinaHeadConfig, in_channels: int, num_levels: int) -> None:
        super().__init__()
        self.channels = in_channels
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for _ in range(config.num_convs):
            width = config.channels or in_channels
            conv = nn.Conv2d(self.channels, width, 3, padding=1, bias=config.norm == "none")
            nn.init.normal_(conv.weight, std=config.init_std or math.sqrt(2 / (9 * self.channels)))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.convs.append(conv)
            self.norms.append(
                nn.ModuleList(make_norm(config.norm, width, config.sync_group_size) for _ in range(num_levels))
            )
            self.channels = width

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return the tower's output, shape (B, channels, H, W), for the map of the `level`-th level."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            norm = cast(nn.ModuleList, norms)[level]
            x = F.relu(norm(conv(x)), inplace=True)
        return x


class RetinaHead(nn.Module):
    """Class logits, box deltas and, with an IoU branch, IoU logits for every anchor of every level.

    Source: Lin et al. 2017 (arXiv:1708.02002); one norm per level and the IoU branch as United-Perception's
    RetinaHeadWithBN and RetinaHeadWithBNIOU (up_semantics §2.5).
    """

    def __init__(
        self, config: RetinaHeadConfig, in_channels: int, num_levels: int, num_anchors: int, num_classes: int
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.num_classes = num_classes
        self.class_major = config.class_major
        self.cls_tower = SharedTower(config, in_channels, num_levels)
        self.box_tower = SharedTower(config, in_channels, num_levels)
        prior_logit = math.log(config.prior / (1 - config.prior))
        self.cls_pred = _predictor(self.cls_tower.channels, num_anchors * num_classes, bias=prior_logit)
        self.box_pred = _predictor(self.box_tower.channels, num_anchors * 4, bias=0.0)
        self.iou_pred = _predictor(self.box_tower.channels, num_anchors, bias=0.0) if config.iou_branch else None

    def forward(self, features: Sequence[Tensor]) -> tuple[HeadOutput, ...]:
        """Return the raw predictions of each level, in the order of `features`.

        Raises:
            ConfigError: there are more or fewer maps than levels.
        """
        if len(features) != self.num_levels:
            raise ConfigError(
                f"features: expected {self.num_levels} maps, one for each level of the head, got {len(features)}. "
                "Build the head for as many levels as the neck returns."
            )
        return tuple(self._level(x, level) for level, x in enumerate(features))

    def _level(self, x: Tensor, level: int) -> HeadOutput:
        cls_logits = self.cls_pred(self.cls_tower(x, level))
        x = self.box_tower(x, level)
        return HeadOutput(cls_logits, self.box_pred(x), None if self.iou_pred is None else self.iou_pred(x))


def _predictor(in_channels: int, out_channels: int, bias: float) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=PREDICTOR_STD)
    nn.init.constant_(cast(Tensor, conv.bias), bias)
    return conv
