"""The two splits of a recipe, checked and ready to be loaded."""

from dataclasses import dataclass
from pathlib import Path

from sparsedet.common.errors import DatasetError
from sparsedet.common.files import hash_json
from sparsedet.detection.data.check import load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset


@dataclass(frozen=True)
class Splits:
    """What an experiment reads its images from.

    Attributes:
        train: images to learn from.
        val: images to evaluate on.
        hash: hash of both annotation files.
        warnings: what was put right or is odd about them, one line each.
    """

    train: DetectionDataset
    val: DetectionDataset
    hash: str
    warnings: tuple[str, ...]


def open_splits(config: DataConfig, seed: int) -> Splits:
    """Read and check both splits; image files are looked for but not opened.

    Raises:
        DatasetError: anything is wrong with them.
    """
    train, val, warnings = load_splits(config)
    dataset = DetectionDataset(train, config, is_train=True, seed=seed)
    _check_count("num_classes", config.num_classes, len(train.categories), "categories", train.path)
    _check_count("num_train_images", config.num_train_images, len(dataset), "training images", train.path)
    return Splits(
        dataset,
        DetectionDataset(val, config, is_train=False),
        hash_json([train.data_hash, val.data_hash]),
        warnings,
    )


def _check_count(key: str, expected: int | None, got: int, what: str, path: Path) -> None:
    if expected is not None and expected != got:
        raise DatasetError(
            f"data.{key}: expected {expected} {what} as the recipe says, got {got} in {path}. "
            f"Use the data the recipe is for, or set data.{key} to null."
        )
