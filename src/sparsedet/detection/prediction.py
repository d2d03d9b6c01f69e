"""From a detector and image files to detections; a file that cannot be used is named and passed over."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import Category, CocoDataset, ImageRecord
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.images import FORMATS, read_header
from sparsedet.detection.data.loader import Batch, collate, padded_val_size
from sparsedet.detection.inference import detect
from sparsedet.detection.models import Detector


@dataclass(frozen=True)
class Prediction:
    """What was found in one image file.

    Attributes:
        image_id: place of the file among those given, from 1.
        path: the file.
        width: of the upright image (EXIF orientation applied), in pixels.
        height: likewise.
        results: COCO results by falling score, in pixels of the upright image.
    """

    image_id: int
    path: Path
    width: int
    height: int
    results: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: Path
    reason: str


def find_images(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return files as they are and of folders the image files right in them, by name; each once.

    What cannot be read as an image but is named like one, or is a folder with none, is among them: to be passed over
    with a reason, not in silence.

    Raises:
        DatasetError: there is no file at all.
    """
    paths = list(paths)
    found: dict[Path, None] = {}
    for path in paths:
        entries = sorted(path.iterdir()) if path.is_dir() else []
        inside = [file for file in entries if _is_image_name(file) and not file.is_dir()]
        found |= dict.fromkeys(inside or [path])
    if all(path.is_dir() for path in found):
        raise DatasetError(
            f"images: expected image files, or folders with some, got {', '.join(map(str, paths)) or 'nothing'}. "
            f"Known are {', '.join(FORMATS)}; of a folder only the files right in it are taken."
        )
    return tuple(found)


def _is_image_name(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def predict(
    model: Detector,
    config: DataConfig,
    categories: Sequence[Category],
    paths: Sequence[Path],
    device: torch.device,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "fp32",
    min_score: float = 0.0,
) -> Iterator[Prediction | Skipped]:
    """Yield for each image file what is found in it, or why nothing can be; images of one shape come together.

    Args:
        model: detector, on `device`.
        config: how its images are prepared; where its data is does not matter.
        categories: of each label.
        paths: image files.
        device: where the model is.
        batch_size: images per forward pass; a batch holds images of one padded size, so it changes no result.
        num_workers: processes that load images, 0 for none.
        precision: number format of the forward pass: fp32, bf16 or fp16.
        min_score: what is found with a lower score is left out.
    """
    images: list[ImageRecord] = []
    for image_id, path in enumerate(paths, start=1):
        try:
            height, width = read_header(path).upright_size
            images.append(ImageRecord(image_id, str(path), width, height))
        except Exception as error:
            yield _skipped(path, error)
    if not images:
        return
    config = config.model_copy(update={"val_without_annotations": True, "cache": None})
    coco = CocoDataset(Path("images"), Path(), tuple(images), tuple(categories), (), "")
    dataset = DetectionDataset(coco, config, is_train=False)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(padded_val_size(config, (image.height, image.width), model.stride), []).append(index)
    batches = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    loader = DataLoader(
        _Batches(dataset, config.pad_multiple or model.stride),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for batch, used, skipped in loader:
        yield from skipped
        if batch is None:
            continue
        results = detect(model, [batch], coco.category_ids, device, precision)
        for image in (images[index] for index in used):
            own = [row for row in results if row["image_id"] == image.id and row["score"] >= min_score]
            yield Prediction(image.id, Path(image.file_name), image.width, image.height, tuple(own))


class _Batches(Dataset[tuple[Batch | None, list[int], list[Skipped]]]):
    """Batches by the indices of their images, without those that cannot be used; what runs in a worker process."""

    def __init__(self, dataset: DetectionDataset, multiple: int) -> None:
        self.dataset = dataset
        self.multiple = multiple

    def __getitem__(self, indices: Sequence[int]) -> tuple[Batch | None, list[int], list[Skipped]]:
        """Return the batch of the images that can be used, their indices, and the others."""
        samples, used, skipped = [], [], []
        for index in indices:
            try:
                samples.append(self.dataset[0, index])
                used.append(index)
            except Exception as error:
                skipped.append(_skipped(Path(self.dataset.images[index].file_name), error))
        return collate(samples, self.multiple) if samples else None, used, skipped


def _skipped(path: Path, error: Exception) -> Skipped:
    """Say why a file is passed over. Decoders fail in all ways, and one bad file must not end a run over thousands."""
    known = isinstance(error, DatasetError)
    return Skipped(
        path, str(error) if known else f"{path}: expected an image file, got {type(error).__name__}: {error}"
    )
