"""MobileNetV2 of torchvision without its last convolution, which serves the classifier."""

from typing import Literal, cast

from pydantic import PositiveFloat
from torch import nn
from torchvision import models

from sparsedet.detection.models.backbones.base import Backbone, BaseBackboneConfig, init_convs
from sparsedet.detection.models.backbones.weights import load_weights

STAGE_ENDS = (2, 4, 7, 14, 18)  # blocks of `features` after which the stride has doubled as often as it will


class MobileNetV2Config(BaseBackboneConfig):
    """A MobileNetV2; see `BaseBackboneConfig` for the other fields.

    Attributes:
        width_mult: factor on all channel counts, rounded to multiples of 8.
    """

    type: Literal["mobilenet_v2"] = "mobilenet_v2"
    width_mult: PositiveFloat = 1.0

    def build(self, pretrained: bool = True) -> "MobileNetV2":
        """Build the network and, if `pretrained`, load `weights`; raises what `load_weights` raises."""
        backbone = MobileNetV2(self)
        if pretrained:
            unbuilt = tuple(f"features.{index}." for index in range(len(backbone.features), 19))
            load_weights(backbone, self.type, self.weights, ("classifier.", *unbuilt))
        return backbone


class MobileNetV2(Backbone):
    """Inverted residual blocks up to the highest level; 24, 32, 96, 320 channels at levels 2 to 5.

    Source: Sandler et al. 2018 (arXiv:1801.04381); blocks and initialisation from torchvision.
    """

    def __init__(self, config: MobileNetV2Config) -> None:
        super().__init__(config.levels, config.frozen_stages)
        network = models.MobileNetV2(num_classes=1, width_mult=config.width_mult, norm_layer=config.make_norm)
        self.ends = STAGE_ENDS[: config.levels[-1]]
        self.features = cast(nn.Sequential, network.features[: self.ends[-1]])
        last_blocks = [self.features[STAGE_ENDS[level - 1] - 1] for level in config.levels]
        self.channels = tuple(cast(int, block.out_channels) for block in last_blocks)
        init_convs(self, config.init)
        self.train()

    def stages(self) -> list[list[nn.Module]]:
        """Return the blocks of ``features`` grouped by the stride they lead to."""
        blocks = list(self.features)
        return [blocks[start:end] for start, end in zip((0, *self.ends[:-1]), self.ends, strict=True)]
