"""What a recipe says about its data."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.image_cache import ImageCacheConfig
from sparsedet.detection.data.samplers import SamplerConfig, Shuffle
from sparsedet.detection.data.transforms import EvalTransform, Transform
from sparsedet.detection.data.transforms.mosaic import Mosaic
from sparsedet.detection.data.transforms.perspective import RandomPerspective

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
        train_without_annotations: train on images without any annotation, as background; those with crowds only are
            always trained on.
        val_without_annotations: evaluate on images without any annotation; what is found there counts as wrong.
        crowds: what annotations of crowds are: regions in which detections are neither right nor wrong ("ignore"), or
            nothing ("drop"). The evaluation ignores them in any case.
        inclusive_boxes: compute with x2, y2 of a box as its last pixel on the way through the transforms and back, as
            United-Perception does; targets and detections of a network with `legacy_boxes` are then the same.
        sampler: which images make up a training batch.
        pad_multiple: pixels; the images of a batch are padded to the largest height and width among them, rounded up
            to a multiple of it; null: of the network's stride.
        cache: keep decoded images on disk, 3 bytes a pixel: resized ones where the first transform is a resize to one
            size, else as their files have them. It changes no pixel. null: decode them each time.
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
    train_without_annotations: bool = True
    val_without_annotations: bool = True
    crowds: Literal["ignore", "drop"] = "ignore"
    inclusive_boxes: bool = False
    sampler: SamplerConfig = Shuffle()
    pad_multiple: Annotated[int, Field(ge=1)] | None = None
    cache: ImageCacheConfig | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None
    num_train_images: Annotated[int, Field(ge=1)] | None = None

    @property
    def train_annotations(self) -> Path:
        """Annotation file of the split that is learned."""
        return self.root / self.train.annotations

    @field_validator("cache", mode="before")
    @classmethod
    def _earlier_cache(cls, cache: object) -> object:
        """Accept recipes in older checkpoints: a truth value asked for a cache in memory, which changed no pixel."""
        return None if isinstance(cache, bool) else cache

    @model_validator(mode="after")
    def _mosaics_exist(self) -> Self:
        has_mosaic = False
        for index, transform in enumerate(self.train_transforms):
            has_mosaic |= isinstance(transform, Mosaic)
            if isinstance(transform, RandomPerspective) and transform.only_mosaics and not has_mosaic:
                raise ValueError(
                    f"train_transforms[{index}].only_mosaics: expected a mosaic before it, got none. "
                    "Add one, or drop only_mosaics."
                )
        return self
