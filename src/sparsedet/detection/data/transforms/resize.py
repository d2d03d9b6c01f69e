"""Transforms that change the size of the whole image; the only ones that evaluated images may go through."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.scene import Scene, scale
from sparsedet.detection.data.transforms.draws import integer
from sparsedet.detection.data.transforms.fields import Pixels

Interpolation = Literal["antialias", "opencv"]


class Resize(ConfigModel):
    """Resize to a fixed size; the aspect ratio changes where it must.

    Attributes:
        size: (height, width) in pixels.
        interpolation: see `resize_image`.
    """

    type: Literal["resize"] = "resize"
    size: tuple[Pixels, Pixels]
    interpolation: Interpolation = "antialias"

    @property
    def has_one_size(self) -> bool:
        """Whether the result of an image is always the same."""
        return True

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the result for an image of `size` (height, width)."""
        return self.size

    def __call__(self, scene: Scene) -> Scene:
        """Return the resized scene."""
        return with_resized(scene, resize_image(scene.image, self.size, self.interpolation))


class ResizeShorter(ConfigModel):
    """Resize so that the shorter side is `shorter`, or less where the longer side would exceed `max_longer`.

    Attributes:
        shorter: pixels; of a list, one is drawn for each training image.
        max_longer: pixels; None sets no limit.
        interpolation: see `resize_image`.
    """

    type: Literal["resize_shorter"] = "resize_shorter"
    shorter: Pixels | tuple[Pixels, ...]
    max_longer: Pixels | None = None
    interpolation: Interpolation = "antialias"

    @model_validator(mode="after")
    def _check(self) -> "ResizeShorter":
        if not self.choices:
            raise ValueError("shorter: expected at least one number of pixels, got an empty list. Add one.")
        longest = max(self.choices)
        if self.max_longer is not None and self.max_longer < longest:
            raise ValueError(
                f"expected max_longer >= shorter ({longest}), got {self.max_longer}. Raise max_longer, or leave it out."
            )
        return self

    @property
    def choices(self) -> tuple[int, ...]:
        """What `shorter` may be for an image, in pixels."""
        return self.shorter if isinstance(self.shorter, tuple) else (self.shorter,)

    @property
    def has_one_size(self) -> bool:
        """Whether the result of an image is always the same."""
        return len(self.choices) == 1

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the result for an image of `size`, where `shorter` leaves no choice."""
        (shorter,) = self.choices
        return _scaled(size, self._factor(size, shorter))

    def __call__(self, scene: Scene) -> Scene:
        """Return the resized scene."""
        shorter = self.choices[integer(0, len(self.choices) - 1) if len(self.choices) > 1 else 0]
        return self.resize(scene, shorter)

    def resize(self, scene: Scene, shorter: int) -> Scene:
        """Return the scene resized to one of the `choices`, in pixels."""
        factor = self._factor(scene.size, shorter)
        return with_resized(scene, resize_image(scene.image, _scaled(scene.size, factor), self.interpolation, factor))

    def _factor(self, size: tuple[int, int], shorter: int) -> float:
        factor = shorter / min(size)
        return factor if self.max_longer is None else min(factor, self.max_longer / max(size))


def resize_image(
    image: Tensor, size: tuple[int, int], interpolation: Interpolation, factor: float | None = None
) -> Tensor:
    """Return an image (uint8, shape (3, H, W)) in another size (height, width), bilinearly interpolated.

    Args:
        image: what to resize.
        size: (height, width) of the result, in pixels.
        interpolation: "antialias" averages over all pixels that fall together, as torchvision and Pillow do;
            "opencv" interpolates between the nearest two in each direction, as OpenCV does (at most one grey level
            differs, since it computes with integers).
        factor: by how much "opencv" enlarges, where rounding the size makes this differ from the ratio of the sides.
    """
    height, width = image.shape[1:]
    if size == (height, width):
        return image
    if interpolation == "antialias":
        resized: Tensor = v2.functional.resize(image, list(size), antialias=True)
        return resized
    factors = (size[0] / height, size[1] / width) if factor is None else (factor, factor)
    # Along a side that keeps its length torch copies, whatever the factor; one more pixel makes it interpolate.
    border = (0, int(size[1] == width), 0, int(size[0] == height))
    given = image.permute(1, 2, 0)[None].float().contiguous().permute(0, 3, 1, 2)  # channels last: twice as fast
    if any(border):
        given = pad(given, border, mode="replicate")
    pixels: Tensor = torch.ops.aten.upsample_bilinear2d(given, size, False, *factors)[0]
    # NumPy turns rounded floats into uint8 seven times faster than torch.
    return torch.from_numpy(pixels.round_().clamp_(0, 255).numpy().astype(np.uint8))


def to_grey_levels(pixels: Tensor) -> Tensor:
    """Return float pixels rounded to uint8, in [0, 255]."""
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return the sides times `factor`, rounded half to even, at least 1."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def with_resized(scene: Scene, image: Tensor) -> Scene:
    """Return the scene with its image in another size, and the boxes scaled like its sides."""
    (height, width), (new_height, new_width) = scene.size, (image.shape[1], image.shape[2])
    boxes = scale(scene.boxes_xyxy, new_width / width, new_height / height)
    return replace(scene, image=image, boxes_xyxy=boxes)
