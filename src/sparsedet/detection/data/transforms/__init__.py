"""Transforms that a recipe can choose.

A transform takes a `Scene` (an image and its boxes) and returns another; the boxes stay in step with the image, and
those of which nothing is left are removed. Random ones draw their numbers from torch's global generator and hand
them to a function that does not draw.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from sparsedet.detection.data.transforms.colors import ColorJitter, HsvJitter
from sparsedet.detection.data.transforms.flips import HorizontalFlip, VerticalFlip
from sparsedet.detection.data.transforms.mosaic import Mosaic
from sparsedet.detection.data.transforms.perspective import RandomPerspective
from sparsedet.detection.data.transforms.resize import Resize, ResizeShorter
from sparsedet.detection.data.transforms.windows import IouCrop, SquareCrop, StitchExpand, ZoomOut

TRANSFORMS = {
    "resize": Resize,
    "resize_shorter": ResizeShorter,
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "hsv_jitter": HsvJitter,
    "zoom_out": ZoomOut,
    "iou_crop": IouCrop,
    "stitch_expand": StitchExpand,
    "square_crop": SquareCrop,
    "mosaic": Mosaic,
    "random_perspective": RandomPerspective,
}


def _without_choice(transform: Resize | ResizeShorter) -> Resize | ResizeShorter:
    if isinstance(transform, ResizeShorter) and len(transform.choices) > 1:
        raise ValueError(
            f"shorter: expected one number for evaluated images, got {list(transform.choices)}. "
            "Choose the one to evaluate at."
        )
    return transform


EvalTransform = Annotated[
    Annotated[Resize | ResizeShorter, Field(discriminator="type")], AfterValidator(_without_choice)
]
Transform = Annotated[
    Resize
    | ResizeShorter
    | HorizontalFlip
    | VerticalFlip
    | ColorJitter
    | HsvJitter
    | ZoomOut
    | IouCrop
    | StitchExpand
    | SquareCrop
    | Mosaic
    | RandomPerspective,
    Field(discriminator="type"),
]
