"""Samples and batches: what the network sees, and the way back to the pixels of the original image.

The images of training step s depend on the seed and s only, and what happens to an image on the seed, the
epoch and its index only: neither worker processes nor an interruption change them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import Annotation, CocoDataset
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.images import decode_image
from sparsedet.detection.evaluation import to_coco_results
from sparsedet.detection.structures import Detections, Target

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


@dataclass(frozen=True)
class Batch:
    """B images padded with zeros, at the right and below, to one size.

    Attributes:
        images: float32, shape (B, 3, H, W), normalised; H and W are multiples of the network's stride.
        targets: one for each image.
        image_ids: COCO image ids.
        original_sizes: (height, width) of each image file, in pixels.
    """

    images: Tensor
    targets: list[Target]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with images and targets on `device`."""
        targets = [
            replace(
                target,
                boxes_xyxy=target.boxes_xyxy.to(device),
                labels=target.labels.to(device),
                ignore_xyxy=target.ignore_xyxy.to(device),
            )
            for target in self.targets
        ]
        return replace(self, images=self.images.to(device), targets=targets)

    def to_coco_results(self, detections: Sequence[Detections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the detections of all images, in pixels of the original images, as COCO results."""
        results: list[dict[str, Any]] = []
        for index, found in enumerate(detections):
            size, original_size = self.targets[index].image_size, self.original_sizes[index]
            results.extend(to_coco_results(found, self.image_ids[index], size, original_size, category_ids))
        return results


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
                torch.manual_seed(_mix(self.seed, epoch, index))
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


def collate(samples: Sequence[Sample], stride: int) -> Batch:
    """Pad the images to the largest height and width among them, rounded up to a multiple of `stride`."""
    height = _round_up(max(sample.image.shape[1] for sample in samples), stride)
    width = _round_up(max(sample.image.shape[2] for sample in samples), stride)
    images = torch.zeros(len(samples), 3, height, width)
    for padded, sample in zip(images, samples, strict=True):
        padded[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(
        images=images,
        targets=[sample.target for sample in samples],
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
    )


def train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    first_step: int,
    total_steps: int,
    stride: int,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of the steps `first_step` to `total_steps` - 1 of an endless shuffled stream.

    The stream is one permutation of all images after the other (seeded by the dataset's seed and the epoch),
    cut into batches of equal size; starting at another step continues the same stream.
    """
    stream = _shuffled(len(dataset), dataset.seed, first_step * batch_size)
    batches = (list(islice(stream, batch_size)) for _ in range(first_step, total_steps))
    return _load(dataset, batches, stride, num_workers)


def val_loader(dataset: DetectionDataset, batch_size: int, stride: int, num_workers: int = 0) -> Iterator[Batch]:
    """Yield every image once; a batch holds images of one padded size, so its size changes no result."""
    groups: dict[tuple[int, int], list[Position]] = {}
    for index, record in enumerate(dataset.images):
        size = record.height, record.width
        for transform in dataset.config.val_transforms:
            size = transform.output_size(size)
        groups.setdefault((_round_up(size[0], stride), _round_up(size[1], stride)), []).append((0, index))
    batches = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    return _load(dataset, batches, stride, num_workers)


class _TrainBatches(Sampler[list[Position]]):
    """The batches of training steps, made one by one: a long run would not fit in memory."""

    def __init__(self, num_images: int, seed: int, batch_size: int, steps: range) -> None:
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.steps = steps

    def __iter__(self) -> Iterator[list[Position]]:
        stream = _shuffled(self.num_images, self.seed, self.steps.start * self.batch_size)
        for _ in self.steps:
            yield list(islice(stream, self.batch_size))


class _Batches(Dataset[Batch | DatasetError]):
    """Batches by the positions of their images; what runs in a worker process."""

    def __init__(self, dataset: DetectionDataset, stride: int) -> None:
        self.dataset = dataset
        self.stride = stride

    def __getitem__(self, positions: Sequence[Position]) -> Batch | DatasetError:
        """Return the batch, or what is wrong with an image: raised here, it would come with a traceback."""
        try:
            return collate([self.dataset[position] for position in positions], self.stride)
        except DatasetError as error:
            return error


def _load(
    dataset: DetectionDataset, batches: Iterable[Sequence[Position]], stride: int, num_workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        _Batches(dataset, stride),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        generator=torch.Generator(),  # else the loader draws from the global generator
    )
    fault: DatasetError | None = None
    for outcome in loader:
        if isinstance(outcome, DatasetError):
            fault = outcome
            break
        yield outcome
    if fault is not None:  # raised after the loop, so that the worker processes have ended
        raise fault


def _shuffled(num_images: int, seed: int, start: int) -> Iterator[Position]:
    """Yield the positions of the training stream from its `start`-th on."""
    epoch, offset = divmod(start, num_images)
    while True:
        generator = torch.Generator().manual_seed(_mix(seed, epoch))
        for index in torch.randperm(num_images, generator=generator)[offset:].tolist():
            yield epoch, index
        epoch, offset = epoch + 1, 0


def _mix(*numbers: int) -> int:
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
