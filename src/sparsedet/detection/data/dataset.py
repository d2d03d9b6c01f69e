"""The images of one split, transformed and normalised: what the network sees of each.

What happens to an image depends on the seed, the epoch and its index only: neither worker processes nor an
interruption change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import Annotation, CocoDataset
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.images import decode_image
from sparsedet.detection.structures import Target

_IGNORE = -1  # label of ignore regions on their way through the transforms

Position = tuple[int, int]  # (epoch, index of the image)


@dataclass(frozen=True)
class Sample:
    """One image as the network sees it.

    Attributes:
        image: float32, shape (3, H, W), normalised.
        target: what is to be found in it.
        image_id: COCO image id.
        original_size: (height, width) of the image file, in pixels.
    """

    image: Tensor
    target: Target
    image_id: int
    original_size: tuple[int, int]


class DetectionDataset(Dataset[Sample]):
    """The images of one split, ready for the network.

    Indexed by (epoch, index): random transforms differ between epochs and are the same in each run.

    Args:
        coco: the split.
        config: transforms, normalisation, cache.
        is_train: use the training transforms, and leave out images without boxes where configured so.
        seed: of the random transforms.
    """

    def __init__(self, coco: CocoDataset, config: DataConfig, is_train: bool, seed: int = 0) -> None:
        self.coco = coco
        self.config = config
        self.images = tuple(
            image
            for image in coco.images
            if not is_train or config.train_without_boxes or _has_boxes(coco.annotations_by_image[image.id])
        )
        if not self.images:
            raise DatasetError(
                f"{coco.path}: expected an image with boxes, got none. "
                "Annotate some images, or set train_without_boxes: true."
            )
        self._transforms = config.train_transforms if is_train else config.val_transforms
        self.seed = seed
        self._labels = {category_id: label for label, category_id in enumerate(coco.category_ids)}
        self._mean = torch.tensor(config.mean).view(3, 1, 1) * 255
        self._std = torch.tensor(config.std).view(3, 1, 1) * 255
        self._cache: dict[int, Tensor] | None = {} if config.cache else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, position: Position) -> Sample:
        """Return one image and its target; see the class for `position`."""
        epoch, index = position
        record = self.images[index]
        size = record.height, record.width
        image = tv_tensors.Image(self._decode(index))
        boxes, labels = self._boxes(self.coco.annotations_by_image[record.id], size)
        if self._transforms:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix(self.seed, epoch, index))
                for transform in self._transforms:
                    image, boxes = transform(image, boxes)
        pixels = (image.as_subclass(Tensor).float() - self._mean) / self._std
        return Sample(pixels, _target(boxes, labels, (pixels.shape[1], pixels.shape[2])), record.id, size)

    def _decode(self, index: int) -> Tensor:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = self.images[index]
        image = decode_image(self.coco.image_path(record), (record.height, record.width))
        if self._cache is not None:
            self._cache[index] = image
        return image

    def _boxes(
        self, annotations: Sequence[Annotation], size: tuple[int, int]
    ) -> tuple[tv_tensors.BoundingBoxes, Tensor]:
        """Return all boxes as corners, shape (N, 4), and their labels, shape (N,), -1 for ignore regions."""
        xywh = torch.tensor([annotation.bbox for annotation in annotations], dtype=torch.float64).reshape(-1, 4)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float()
        labels = [_IGNORE if a.is_crowd else self._labels[a.category_id] for a in annotations]
        boxes = tv_tensors.BoundingBoxes(xyxy, format="XYXY", canvas_size=size)
        return boxes, torch.tensor(labels, dtype=torch.int64)


def mix(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _target(boxes: tv_tensors.BoundingBoxes, labels: Tensor, size: tuple[int, int]) -> Target:
    """Split boxes from ignore regions, without those that a transform cropped away (they have no area)."""
    plain = boxes.as_subclass(Tensor)
    visible = (plain[:, 2:] > plain[:, :2]).all(dim=1)
    is_object = visible & (labels != _IGNORE)
    return Target(plain[is_object], labels[is_object], plain[visible & (labels == _IGNORE)], size)


def _has_boxes(annotations: Sequence[Annotation]) -> bool:
    return any(not annotation.is_crowd for annotation in annotations)
