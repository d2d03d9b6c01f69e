"""What a data command is about: a COCO JSON file with its images, or the two splits of each data set of a recipe."""

from collections.abc import Callable
from pathlib import Path

from sparsedet.benchmark.suite import load_suite
from sparsedet.common.errors import ConfigError
from sparsedet.common.shipped import find_config
from sparsedet.detection.data.check import Split, check_file, check_splits, load_splits
from sparsedet.detection.data.coco import CocoDataset, read_coco
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.conversion import Conversion
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.repair import require_new_files, write_repaired
from sparsedet.detection.data.voc import from_voc, to_voc
from sparsedet.detection.data.yolo import from_yolo, to_yolo

Warn = Callable[[str], None]


def check_source(file: str, images: Path | None, changes: tuple[str, ...]) -> list[Split]:
    """Return all splits of `file`, looked at thoroughly.

    Args:
        file: a COCO JSON file, or a recipe or suite.
        images: folder of the images of a COCO JSON file.
        changes: ``key=value`` laid on the recipes.

    Raises:
        ConfigError: the arguments do not go together, or a recipe is wrong.
    """
    if is_coco(file, images, changes):
        assert images is not None
        return [check_file(Path(file), images)]
    return [split for config in data_configs(file, changes) for split in check_splits(config)]


def repair_source(file: str, images: Path | None, copy: Path, changes: tuple[str, ...]) -> tuple[Split, int]:
    """Write a repaired copy of a COCO JSON file.

    Returns:
        The copy, looked at thoroughly, and the number of changes.

    Raises:
        ConfigError: `file` is a recipe: its annotation files are repaired one by one.
        DatasetError: it is no annotation file, or nothing of it is left.
        StorageError: the copy exists, or cannot be written.
    """
    if not is_coco(file, images, changes):
        names = sorted(
            {
                str(config.root / split.annotations)
                for config in data_configs(file, changes)
                for split in (config.train, config.val)
            }
        )
        raise ConfigError(
            f"--fix: expected a COCO JSON file with --images, got the recipe {file}. "
            f"Repair its annotation files one by one: {', '.join(names)}."
        )
    assert images is not None
    require_new_files(copy)  # before the long work
    repaired = write_repaired(check_file(Path(file), images), copy)
    return check_file(copy, images), len(repaired.changes)


def read_source(file: str, images: Path | None, changes: tuple[str, ...], warn: Warn) -> list[tuple[str, CocoDataset]]:
    """Return the name and the content of all splits of `file`, as training reads them; images are not opened.

    `warn` is told each thing that was put right or is odd.

    Raises:
        ConfigError: the arguments do not go together, or a recipe is wrong.
        DatasetError: training would refuse the data.
    """
    if is_coco(file, images, changes):
        return [("data", _read_coco(Path(file), images or Path(), warn))]
    splits = []
    for config in data_configs(file, changes):
        train, val = _load_splits(config, warn)
        splits += [("train", train), ("val", val)]
    return splits


def open_split(
    file: str, images: Path | None, changes: tuple[str, ...], is_train: bool, seed: int, warn: Warn
) -> DetectionDataset:
    """Return a COCO JSON file, or the training or validation split of the first data set of a recipe.

    `warn` is told each thing that was put right or is odd.

    Raises:
        ConfigError: the arguments do not go together, or a recipe is wrong.
        DatasetError: training would refuse the data.
    """
    if is_coco(file, images, changes):
        assert images is not None
        return DetectionDataset(_read_coco(Path(file), images, warn), DataConfig(root=images), is_train, seed)
    config = data_configs(file, changes)[0]
    train, val = _load_splits(config, warn)
    return DetectionDataset(train if is_train else val, config, is_train, seed)


def convert_source(
    source: str, target: str, images: Path | None, folder: Path, changes: tuple[str, ...], warn: Warn
) -> Conversion:
    """Write `source` in another format into `folder` and return what was written.

    Args:
        source: for ``coco`` the folder of a Pascal VOC data set or the ``data.yaml`` of a YOLO one; else a COCO JSON
            file, or a recipe or suite, of which the first data set is taken.
        target: ``coco``, ``yolo`` or ``voc``.
        images: folder of the images; of Pascal VOC ``JPEGImages`` by default.
        folder: where the files go.
        changes: ``key=value`` laid on the recipes.
        warn: is told each thing about a COCO file that was put right or is odd.

    Raises:
        ConfigError: the arguments do not go together, or a recipe is wrong.
        DatasetError: the data are malformed.
        MissingExtraError: globox is not installed.
        StorageError: a file exists, or cannot be written.
    """
    if target != "coco":
        named = read_source(source, images, changes, warn)[:2]
        splits = {Path(source).stem if name == "data" else name: dataset for name, dataset in named}
        conversion = {"yolo": to_yolo, "voc": to_voc}[target](splits)
    elif Path(source).is_dir():
        conversion = from_voc(Path(source), images or Path(source) / "JPEGImages")
    else:
        conversion = from_yolo(Path(source))
    conversion.write(folder)
    return conversion


def _read_coco(path: Path, images: Path, warn: Warn) -> CocoDataset:
    dataset, findings = read_coco(path, images)
    for warning in findings.warnings:
        warn(warning)
    return dataset


def _load_splits(config: DataConfig, warn: Warn) -> tuple[CocoDataset, CocoDataset]:
    train, val, warnings = load_splits(config)
    for warning in warnings:
        warn(warning)
    return train, val


def data_configs(file: str, changes: tuple[str, ...]) -> list[DataConfig]:
    """Return the different data sets of a recipe or suite, in order."""
    suite = load_suite(find_config(file), changes)
    return list(dict.fromkeys(loaded.recipe.data for loaded in suite.recipes))


def is_coco(file: str, images: Path | None, changes: tuple[str, ...]) -> bool:
    """Return whether `file` is a COCO JSON file, by its name; the other arguments must go with that.

    Raises:
        ConfigError: it is, and `images` is missing, or there are `changes`; or it is not, and there are `images`.
    """
    if Path(file).suffix.lower() != ".json":
        if images is not None:
            raise ConfigError(
                f"--images: expected a COCO JSON file beside it, got {file}. A recipe has its own folders: drop it."
            )
        return False
    if images is None:
        raise ConfigError(
            "--images: expected the folder that the file names of a JSON file start from, got nothing. Add it."
        )
    if not images.is_dir():
        raise ConfigError(f"--images: expected a folder, got {images}. Check the path.")
    if changes:
        raise ConfigError(f"--set: expected a recipe to change, got {file}. Drop it.")
    return True
