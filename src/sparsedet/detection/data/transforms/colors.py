"""Transforms that change colours only."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.scene import Scene
from sparsedet.detection.data.transforms.draws import uniform
from sparsedet.detection.data.transforms.fields import Probability
from sparsedet.detection.data.transforms.resize import to_grey_levels

_NUM_HUES = 180  # a hue of 8 bits counts steps of two degrees
_SHIFT = 12  # quotients are rounded to 1 / 2^12 before they are multiplied


class ColorJitter(ConfigModel):
    """Change brightness, contrast, saturation and hue in random order.

    Attributes:
        brightness: factor drawn from [1 - b, 1 + b]; contrast and saturation likewise.
        hue: shift drawn from [-h, h], in turns of the colour circle.
    """

    type: Literal["color_jitter"] = "color_jitter"
    brightness: Probability = 0.2
    contrast: Probability = 0.2
    saturation: Probability = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def __call__(self, scene: Scene) -> Scene:
        """Return the scene in other colours."""
        jitter = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        return replace(scene, image=jitter(scene.image))


class HsvJitter(ConfigModel):
    """Multiply hue, saturation and value with random factors.

    Attributes:
        hue: factor drawn from [1 - h, 1 + h]; pure red (0) keeps its hue, and those beyond the end of the colour
            circle go on at its beginning.
        saturation: likewise; results above the greatest saturation become the greatest.
        value: likewise.

    Source: augmentation of YOLOv5.
    """

    type: Literal["hsv_jitter"] = "hsv_jitter"
    hue: Probability = 0.015
    saturation: Probability = 0.7
    value: Probability = 0.4

    def __call__(self, scene: Scene) -> Scene:
        """Return the scene in other colours."""
        hue, saturation, value = (uniform(1 - gain, 1 + gain) for gain in (self.hue, self.saturation, self.value))
        return replace(scene, image=scale_hsv(scene.image, hue, saturation, value))


def scale_hsv(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Return an image (uint8, shape (3, H, W)) with its hue, saturation and value multiplied.

    All three are whole numbers, as in OpenCV's 8-bit HSV images: hues 0..179, the others 0..255; products are cut
    off to whole numbers too.
    """
    hues, saturations, values = _to_hsv(image)
    new_hues = (torch.arange(_NUM_HUES, dtype=torch.float64) * hue % _NUM_HUES).floor()
    levels = torch.arange(256, dtype=torch.float64)
    new_saturations, new_values = ((levels * factor).clamp(max=255).floor().float() for factor in (saturation, value))
    # How much of the saturation is missing in each channel: 0 where it is the strongest, 1 where the weakest.
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64)
    places = (offsets[:, None] + new_hues / 30) % 6
    lack = places.minimum(4 - places).clamp(0, 1).float()[:, hues]
    return to_grey_levels(new_values[values] * (1 - new_saturations[saturations] / 255 * lack))


def _to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value as int32, each of shape (H, W), with OpenCV's rounding.

    Hues are from -30 to 149 instead of 0 to 179: as places in a table of 180 both are the same.
    """
    red, green, blue = image.int()
    value = image.amax(dim=0).int()
    spread = value - image.amin(dim=0).int()
    sixth = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _divide(sixth, spread, _NUM_HUES / 6)
    return hue, _divide(spread, value, 255), value


def _divide(numerator: Tensor, denominator: Tensor, factor: float) -> Tensor:
    """Return factor * numerator / denominator (0 for 0 / 0) by rounded reciprocals of the 256 denominators."""
    reciprocals = (factor * 2**_SHIFT / torch.arange(256, dtype=torch.float64).clamp(min=1)).round()
    quotient: Tensor = (numerator * reciprocals.int()[denominator] + 2 ** (_SHIFT - 1)) >> _SHIFT
    return quotient
