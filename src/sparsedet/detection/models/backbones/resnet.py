"""ResNet of any torchvision kind and any width; parameter names are torchvision's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sparsedet.detection.models.backbones.base import Backbone, BaseBackboneConfig, init_convs
from sparsedet.detection.models.backbones.weights import load_weights


@dataclass(frozen=True)
class Kind:
    """Layout of one torchvision ResNet; `width_per_group` is given for 64 channels after the stem."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


KINDS = {
    "resnet18": Kind(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Kind(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Kind(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Kind(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Kind(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Kind(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Kind(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Kind(Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Kind(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Kind(Bottleneck, (3, 4, 23, 3), width_per_group=128),
}


class ResNetConfig(BaseBackboneConfig):
    """A ResNet; see `BaseBackboneConfig` for the other fields.

    Attributes:
        type: torchvision's name of the layout.
        width: channels after the stem, 64 in the papers; all others scale with it.
    """

    type: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ] = "resnet18"
    width: PositiveInt = 64

    def build(self, pretrained: bool = True) -> "ResNet":
        """Build the network and, if `pretrained`, load `weights`; raises what `load_weights` raises."""
        backbone = ResNet(self)
        if pretrained:
            unbuilt = tuple(f"layer{index}." for index in range(self.levels[-1], 5))
            load_weights(backbone, self.type, self.weights, ("fc.", *unbuilt))
        return backbone


class ResNet(Backbone):
    """Residual network with the stride on the 3x3 convolution; stages above the highest level are not built.

    Source: He et al. 2016 (arXiv:1512.03385); blocks from torchvision.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config.levels, config.frozen_stages)
        kind = KINDS[config.type]
        expansion = kind.block.expansion
        norm = config.make_norm
        channels = config.width
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = [f"layer{index}" for index in range(1, config.levels[-1])]
        for index, name in enumerate(self.layers):
            planes = config.width * 2**index
            stride = 1 if index == 0 else 2
            blocks = []
            for position in range(kind.depths[index]):
                blocks.append(
                    kind.block(
                        channels,
                        planes,
                        stride=stride if position == 0 else 1,
                        downsample=_downsample(channels, planes * expansion, stride, norm) if position == 0 else None,
                        groups=kind.groups,
                        base_width=kind.width_per_group,
                        norm_layer=norm,
                    )
                )
                channels = planes * expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.channels = tuple(config.width * 2 ** (level - 2) * expansion for level in config.levels)
        init_convs(self, config.init)
        self.train()

    def stages(self) -> list[list[nn.Module]]:
        """Return stem, max-pool with ``layer1``, ``layer2`` and so on."""
        layers = [self.get_submodule(name) for name in self.layers]
        return [
            [self.conv1, self.bn1, self.relu],
            [self.maxpool, layers[0]],
            *([layer] for layer in layers[1:]),
        ]


def _downsample(in_channels: int, out_channels: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Module | None:
    """Return the projection of a block's shortcut, or None where the shortcut is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))
