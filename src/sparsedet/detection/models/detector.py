"""What trainer, evaluation and pruning need of a detector, whatever its kind."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

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
