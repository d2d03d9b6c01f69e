"""What a recipe says about its data."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.transforms import EvalTransform, Transform

Positive = Annotated[float, Field(gt=0)]


class SplitConfig(ConfigModel):
    """Where the images of one split are.

    Attributes:
        annotations: COCO JSON file, relative to the root of the data.
        images: folder that the file names in it start from, relative to the root of the data.
    """

    annotations: str
    images: str = "images"


class DataConfig(ConfigModel):
    """A data set in COCO format and how its images reach the network.

    Attributes:
        root: folder of the data.
        train: split that is learned.
        val: split that is evaluated.
        train_transforms: applied in order to training images, before normalisation.
        val_transforms: applied in order to evaluated images; only resizing, so that detections map back.
        mean: of each RGB channel of pixels in [0, 1]; the default is ImageNet's.
        std: likewise.
        train_without_boxes: train on images that have no boxes, as background.
        cache: keep decoded images in memory (3 bytes a pixel; with workers, in each of them).
        num_classes: number of categories the annotation files must have; null accepts any. With it and
            `num_train_images`, plans and analyses need no data.
        num_train_images: number of images that are trained on; likewise.
    """

    root: Path
    train: SplitConfig = SplitConfig(annotations="annotations/train.json")
    val: SplitConfig = SplitConfig(annotations="annotations/val.json")
    train_transforms: tuple[Transform, ...] = ()
    val_transforms: tuple[EvalTransform, ...] = ()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    train_without_boxes: bool = True
    cache: bool = False
    num_classes: Annotated[int, Field(ge=1)] | None = None
    num_train_images: Annotated[int, Field(ge=1)] | None = None
