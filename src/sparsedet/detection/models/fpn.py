"""Feature pyramid network.

Shapes: B images, level l has stride 2 ** l.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.norms import Norm, conv_norm


class FPNConfig(ConfigModel):
    """A feature pyramid.

    Attributes:
        channels: channels of every output level.
        num_levels: output levels; those beyond the backbone's are made by `extra`.
        extra: ``conv``, stride-2 convolutions on the highest lateral, or ``pool``, every second pixel of the
            highest output.
        norm: of lateral and output convolutions; the extra convolutions have none.
        sync_group_size: processes that share the statistics of ``sync_batch_norm``; null: all.
        init_std: standard deviation of the initial weights; null is Glorot's normal distribution.
    """

    type: Literal["fpn"] = "fpn"
    channels: PositiveInt = 256
    num_levels: int = Field(default=5, ge=1, le=16)
    extra: Literal["conv", "pool"] = "conv"
    norm: Norm = "batch_norm"
    sync_group_size: PositiveInt | None = None
    init_std: PositiveFloat | None = None

    def build(self, in_channels: Sequence[int], lowest_level: int) -> "FPN":
        """Build the pyramid for maps of `in_channels` channels at `lowest_level` and onwards."""
        return FPN(self, in_channels, lowest_level)


class FPN(nn.Module):
    """Top-down pathway with lateral connections, nearest upsampling and no activation.

    Source: Lin et al. 2017 (arXiv:1612.03144); norm and extra levels as United-Perception (up_semantics
    §2.4), whose first extra convolution reads the highest *lateral*, not the output below it.
    """

    def __init__(self, config: FPNConfig, in_channels: Sequence[int], lowest_level: int) -> None:
        super().__init__()
        levels = range(lowest_level, lowest_level + len(in_channels))
        extra_levels = range(levels.stop, lowest_level + config.num_levels)
        width = config.channels
        self.extra_kind = config.extra
        self.num_extra = len(extra_levels)
        self.lateral = nn.ModuleDict(
            {
                str(level): conv_norm(size, width, 1, config.norm, config.sync_group_size)
                for level, size in zip(levels, in_channels, strict=True)
            }
        )
        self.output = nn.ModuleDict(
            {str(level): conv_norm(width, width, 3, config.norm, config.sync_group_size) for level in levels}
        )
        self.extra = nn.ModuleDict()
        if config.extra == "conv":
            for level in extra_levels:
                self.extra[str(level)] = nn.Conv2d(width, width, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if config.init_std is None:
                    nn.init.xavier_normal_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps (B, channels, H, W), finest first; each extra level has half the size, rounded up."""
        laterals = [lateral(x) for lateral, x in zip(self.lateral.values(), features, strict=True)]
        for index in range(len(laterals) - 2, -1, -1):
            fine = laterals[index]
            laterals[index] = fine + F.interpolate(laterals[index + 1], size=fine.shape[-2:], mode="nearest")
        outputs = [output(x) for output, x in zip(self.output.values(), laterals, strict=True)]
        if self.extra_kind == "pool":
            for _ in range(self.num_extra):
                outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        coarse = laterals[-1]
        for extra in self.extra.values():
            coarse = extra(coarse)
            outputs.append(coarse)
        return tuple(outputs)
