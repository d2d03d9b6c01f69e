"""Backbones: image to feature maps of the chosen levels."""

from typing import Annotated

from pydantic import Field

from sparsedet.detection.models.backbones.base import Backbone
from sparsedet.detection.models.backbones.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from sparsedet.detection.models.backbones.resnet import KINDS, ResNet, ResNetConfig

BACKBONES: dict[str, type[ResNetConfig] | type[MobileNetV2Config]] = {
    **dict.fromkeys(KINDS, ResNetConfig),
    "mobilenet_v2": MobileNetV2Config,
}
BackboneConfig = Annotated[ResNetConfig | MobileNetV2Config, Field(discriminator="type")]

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "MobileNetV2",
    "MobileNetV2Config",
    "ResNet",
    "ResNetConfig",
]
