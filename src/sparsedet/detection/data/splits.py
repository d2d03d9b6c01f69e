"""The two splits of a recipe, checked and ready to be loaded."""

from dataclasses import dataclass

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
    train, val, report = load_splits(config)
    return Splits(
        DetectionDataset(train, config, is_train=True, seed=seed),
        DetectionDataset(val, config, is_train=False),
        hash_json([train.data_hash, val.data_hash]),
        report.warnings,
    )
