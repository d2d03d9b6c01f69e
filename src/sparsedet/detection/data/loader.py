"""Batches: what the network sees in a step, and the way back to the pixels of the original images.

The images of training step s depend on the seed and s only: neither worker processes nor an interruption
change them.
"""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset, Sample
from sparsedet.detection.data.samplers import Position, evaluation_indices
from sparsedet.detection.evaluation import to_coco_results
from sparsedet.detection.structures import Detections, Target


@dataclass(frozen=True)
class Batch:
    """B images padded with zeros, at the right and below, to one size.

    Attributes:
        images: float32, shape (B, 3, H, W), channels last, normalised; H and W are multiples of the network's stride,
            or of ``data.pad_multiple``.
        targets: one for each image.
        image_ids: COCO image ids.
        original_sizes: (height, width) of each image file, in pixels.
        inclusive_boxes: boxes went through the transforms as inclusive corners (``data.inclusive_boxes``).
    """

    images: Tensor
    targets: list[Target]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    inclusive_boxes: bool = False

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
            image_id = self.image_ids[index]
            results.extend(to_coco_results(found, image_id, size, original_size, category_ids, self.inclusive_boxes))
        return results


def collate(samples: Sequence[Sample], multiple: int) -> Batch:
    """Pad the images to the largest height and width among them, rounded up to a multiple of `multiple` pixels."""
    height = _round_up(max(sample.image.shape[1] for sample in samples), multiple)
    width = _round_up(max(sample.image.shape[2] for sample in samples), multiple)
    images = _zeros(len(samples), height, width, 3).permute(0, 3, 1, 2)
    for padded, sample in zip(images, samples, strict=True):
        padded[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(
        images=images,
        targets=[sample.target for sample in samples],
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
        inclusive_boxes=samples[0].inclusive_boxes,
    )


def train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    steps: range,
    stride: int,
    num_ranks: int = 1,
    num_workers: int = 0,
    share: slice = slice(None),
) -> Iterator[Batch]:
    """Yield the batches of training `steps`, one for each rank in turn.

    Args:
        dataset: what is trained on; its configuration says how batches are made up.
        batch_size: images per batch.
        steps: of the run; where they begin changes no batch.
        stride: what images are padded to a multiple of, unless ``data.pad_multiple`` says otherwise.
        num_ranks: batches per step.
        num_workers: processes that load images, 0 for none.
        share: which batches of each step are wanted; those of the r-th of n processes: ``slice(r, None, n)``.
    """
    return _load(dataset, _TrainBatches(dataset, batch_size, num_ranks, steps, share), stride, num_workers)


def val_loader(
    dataset: DetectionDataset, batch_size: int, stride: int, num_workers: int = 0, num_ranks: int = 1, rank: int = 0
) -> Iterator[Batch]:
    """Yield every image once; a batch holds images of one padded size, so its size changes no result.

    With several ranks each batch is yielded on one of them, and is what it is on one: so are the detections.
    """
    batches = _val_batches(dataset, batch_size, stride)
    own = [batches[index] for index in evaluation_indices(len(batches), num_ranks, rank)]
    return _load(dataset, own, stride, num_workers)


def val_image_ids(dataset: DetectionDataset, batch_size: int, stride: int) -> list[int]:
    """Return the ids of the images in the order in which `val_loader` yields them to one rank."""
    return [dataset.images[index].id for batch in _val_batches(dataset, batch_size, stride) for _, index in batch]


def _val_batches(dataset: DetectionDataset, batch_size: int, stride: int) -> list[list[Position]]:
    groups: dict[tuple[int, int], list[Position]] = {}
    for index, image in enumerate(dataset.images):
        size = padded_val_size(dataset.config, (image.height, image.width), stride)
        groups.setdefault(size, []).append((0, index))
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def padded_val_size(config: DataConfig, size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return (height, width) of the batch in which an image file of `size` is evaluated alone, in pixels."""
    for transform in config.val_transforms:
        size = transform.output_size(size)
    multiple = config.pad_multiple or stride
    return _round_up(size[0], multiple), _round_up(size[1], multiple)


class _TrainBatches(Sampler[list[Position]]):
    """The batches of training steps, made one by one: a long run would not fit in memory."""

    def __init__(self, dataset: DetectionDataset, batch_size: int, num_ranks: int, steps: range, share: slice) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_ranks = num_ranks
        self.steps = steps
        self.wanted = set(range(num_ranks)[share])

    def __iter__(self) -> Iterator[list[Position]]:
        sampler, seed = self.dataset.config.sampler, self.dataset.seed
        aspect_ratios = [image.height / image.width for image in self.dataset.images]
        batches = sampler.batches(aspect_ratios, self.batch_size, self.num_ranks, seed, self.steps.start)
        for number, batch in enumerate(islice(batches, len(self.steps) * self.num_ranks)):
            if number % self.num_ranks in self.wanted:
                yield batch


class _Batches(Dataset[Batch | DatasetError]):
    """Batches by the positions of their images; what runs in a worker process."""

    def __init__(self, dataset: DetectionDataset, multiple: int) -> None:
        self.dataset = dataset
        self.multiple = multiple

    def __getitem__(self, positions: Sequence[Position]) -> Batch | DatasetError:
        """Return the batch, or what is wrong with an image: raised here, it would come with a traceback."""
        try:
            return collate([self.dataset[position] for position in positions], self.multiple)
        except DatasetError as error:
            return error


def _load(
    dataset: DetectionDataset, batches: Iterable[Sequence[Position]], stride: int, num_workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        _Batches(dataset, dataset.config.pad_multiple or stride),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        generator=torch.Generator(),  # else the loader draws from the global generator
        worker_init_fn=_leave_signals,
    )
    fault: DatasetError | None = None
    for outcome in loader:
        if isinstance(outcome, DatasetError):
            fault = outcome
            break
        yield outcome
    if fault is not None:  # raised after the loop, so that the worker processes have ended
        raise fault


def _zeros(*shape: int) -> Tensor:
    """Return float32 zeros; in a worker process in shared memory, into which they would be copied otherwise."""
    if get_worker_info() is None:
        return torch.zeros(shape)
    # As torch's own collate function does; memory that nobody has written to is zero.
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # type: ignore[no-untyped-call]  # torch's own
    return torch.empty(0).set_(storage).view(shape)


def _leave_signals(worker: int) -> None:
    """Let a worker process live on when the whole group is signalled: the run still finishes its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
