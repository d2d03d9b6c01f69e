"""What detectors of all kinds share, and what trainer, evaluation and pruning need of them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from pydantic import model_validator
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models.backbones import BackboneConfig, ResNetConfig
from sparsedet.detection.models.fpn import FPNConfig
from sparsedet.detection.structures import Detections, Target


class Detector(nn.Module):
    """Base of the detectors: a network (`forward`), and what turns its raw outputs into losses or detections.

    Attributes:
        stride: images are padded to multiples of this many pixels.
    """

    stride: int

    @abstractmethod
    def losses(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the terms of the loss, float32 scalars, by name.

        Args:
            outputs: what `forward` returned.
            targets: one per image, in pixels of the image that `forward` saw.
        """

    @abstractmethod
    def detect(self, outputs: Any, image_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections of each image, in the order of the batch.

        Args:
            outputs: what `forward` returned, in eval mode.
            image_sizes: (height, width) in pixels of each image without its padding.
        """

    def run_all(self, images: Tensor) -> Any:
        """Run every layer as inference on `images` (B, 3, H, W) would, so that layers can be counted."""
        return self(images)


class BaseDetectorConfig(ConfigModel):
    """Fields of every detector.

    Attributes:
        legacy_boxes: keep what is special about United-Perception's inclusive pixel corners (see `boxes`),
            with which its published models were trained. Boxes that come in and go out have continuous
            corners anyway.
    """

    type: str
    backbone: BackboneConfig = ResNetConfig()
    neck: FPNConfig = FPNConfig()
    legacy_boxes: bool = False

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = self.backbone.levels
        if self.neck.num_levels < len(levels):
            raise ValueError(
                f"neck.num_levels: expected at least {len(levels)} (backbone.levels={list(levels)}), "
                f"got {self.neck.num_levels}. Raise it or give fewer backbone levels."
            )
        if levels[-1] - levels[0] != len(levels) - 1:
            raise ValueError(f"backbone.levels: expected consecutive levels, got {list(levels)}. Fill the gap.")
        return self

    @abstractmethod
    def build(self, num_classes: int, pretrained: bool = True) -> Detector:
        """Build the detector.

        Args:
            num_classes: number of classes C, without background.
            pretrained: load ``backbone.weights``; False when a checkpoint is loaded next.

        Raises:
            ConfigError: `num_classes` is not positive, or the weights cannot be downloaded.
            CheckpointError: the weights cannot be read or do not fit.
        """


def check_num_classes(num_classes: int) -> None:
    """Check that there is a class to detect.

    Raises:
        ConfigError: there is none.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes: expected at least 1, got {num_classes}. Give the data set's class count.")
