"""Transforms that a recipe can choose, on top of torchvision.transforms.v2.

A transform takes an image (`tv_tensors.Image`, uint8, shape (3, H, W)) and its boxes
(`tv_tensors.BoundingBoxes`, XYXY, shape (N, 4)) and returns both; boxes stay in step with the image, and a
box that left the image comes back without area. Random ones draw from torch's global generator.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torchvision import tv_tensors
from torchvision.transforms import v2

from sparsedet.common.config import ConfigModel

Probability = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1)]
Pair = tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]


class Resize(ConfigModel):
    """Resize to a fixed size; the aspect ratio changes where it must.

    Attributes:
        size: (height, width) in pixels.
    """

    type: Literal["resize"] = "resize"
    size: tuple[Pixels, Pixels]

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the result for an image of `size` (height, width)."""
        return self.size

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the resized image and boxes."""
        return _resize(image, boxes, self.size)


class ResizeShorter(ConfigModel):
    """Resize so that the shorter side is `shorter`, or less where the longer side would exceed `max_longer`.

    Attributes:
        shorter: pixels.
        max_longer: pixels; None sets no limit.
    """

    type: Literal["resize_shorter"] = "resize_shorter"
    shorter: Pixels
    max_longer: Pixels | None = None

    @model_validator(mode="after")
    def _check(self) -> "ResizeShorter":
        if self.max_longer is not None and self.max_longer < self.shorter:
            raise ValueError(
                f"expected max_longer >= shorter ({self.shorter}), got {self.max_longer}. "
                "Raise max_longer, or leave it out."
            )
        return self

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the result for an image of `size` (height, width)."""
        factor = self.shorter / min(size)
        if self.max_longer is not None:
            factor = min(factor, self.max_longer / max(size))
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the resized image and boxes."""
        height, width = image.shape[-2:]
        return _resize(image, boxes, self.output_size((height, width)))


class HorizontalFlip(ConfigModel):
    """Mirror left and right with probability `p`."""

    type: Literal["horizontal_flip"] = "horizontal_flip"
    p: Probability = 0.5

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the image and boxes, mirrored or as they are."""
        return _pair(v2.RandomHorizontalFlip(self.p)(image, boxes))


class VerticalFlip(ConfigModel):
    """Mirror top and bottom with probability `p`; for pictures without an up, such as aerial ones."""

    type: Literal["vertical_flip"] = "vertical_flip"
    p: Probability = 0.5

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the image and boxes, mirrored or as they are."""
        return _pair(v2.RandomVerticalFlip(self.p)(image, boxes))


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

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the image with other colours, and the boxes."""
        jitter = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        return _pair(jitter(image, boxes))


class ZoomOut(ConfigModel):
    """Put the image at a random place of a larger canvas of the ImageNet mean colour, with probability `p`.

    Attributes:
        max_scale: sides of the canvas are up to this many times those of the image.
        p: probability.

    Source: Liu et al. 2016, SSD (arXiv:1512.02325), section 3.6.
    """

    type: Literal["zoom_out"] = "zoom_out"
    max_scale: Annotated[float, Field(ge=1)] = 2.0
    p: Probability = 0.5

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the canvas and the moved boxes, or both as they are."""
        zoom = v2.RandomZoomOut(fill=[124, 116, 104], side_range=(1.0, self.max_scale), p=self.p)
        return _pair(zoom(image, boxes))


class IouCrop(ConfigModel):
    """Cut out a random part that overlaps some box by a random least IoU; boxes with their centre outside go.

    Follow it with a resize, since the parts differ in size. Images without boxes stay whole.

    Attributes:
        min_scale: sides of the part are at least this share of those of the image.

    Source: Liu et al. 2016, SSD (arXiv:1512.02325), section 2.2.
    """

    type: Literal["iou_crop"] = "iou_crop"
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.3

    def __call__(self, image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes) -> Pair:
        """Return the part and the boxes in it."""
        if len(boxes) == 0:  # torchvision would try every part in vain
            return image, boxes
        return _pair(v2.RandomIoUCrop(min_scale=self.min_scale)(image, boxes))


TRANSFORMS = {
    "resize": Resize,
    "resize_shorter": ResizeShorter,
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "zoom_out": ZoomOut,
    "iou_crop": IouCrop,
}

EvalTransform = Annotated[Resize | ResizeShorter, Field(discriminator="type")]
Transform = Annotated[
    Resize | ResizeShorter | HorizontalFlip | VerticalFlip | ColorJitter | ZoomOut | IouCrop,
    Field(discriminator="type"),
]


def _resize(image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes, size: tuple[int, int]) -> Pair:
    return _pair(v2.Resize(size, antialias=True)(image, boxes))


def _pair(result: Pair) -> Pair:
    """Give torchvision's untyped results their types."""
    image, boxes = result
    return image, boxes
