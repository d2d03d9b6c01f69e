"""Batches: what the network sees in a step, and the way back to the pixels of the original images.

The images of training step s depend on the seed and s only: neither worker processes nor an interruption
change them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.dataset import DetectionDataset, Position, Sample, mix
from sparsedet.detection.evaluation import to_coco_results
from sparsedet.detection.structures import Detections, Target


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
        generator = torch.Generator().manual_seed(mix(seed, epoch))
        for index in torch.randperm(num_images, generator=generator)[offset:].tolist():
            yield epoch, index
        epoch, offset = epoch + 1, 0


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
