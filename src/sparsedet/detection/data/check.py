"""Whether a data set can be trained on: its two annotation files, that they agree, and its image files.

`load_splits` is what training does before its first step; `check_splits` and `check_file` also decode every image, and
go on after a fault. What is done about each kind of finding stands in `sparsedet.detection.data.kinds`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import Category, CocoDataset, scan_coco
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.duplicates import find_twins
from sparsedet.detection.data.findings import Finding, Findings, printable, raise_faults, shorten
from sparsedet.detection.data.image_files import Decoded, decode_files, look_for_files
from sparsedet.detection.data.statistics import per_size


@dataclass(frozen=True)
class SplitReport:
    """What is in one split.

    Attributes:
        name: "train" or "val"; "data" for a file alone.
        annotations: path of the annotation file.
        num_images: all images.
        num_images_without_annotations: images without any annotation.
        num_boxes: annotations that are no crowds.
        num_crowds: annotations with iscrowd 1.
        boxes_per_category: number of boxes by category name, in the order of the labels.
        boxes_per_size: number of boxes that COCO counts as small, medium and large.
        findings: all that was found, by kind.
        faults: messages of what training refuses.
        warnings: what was put right or is odd, one line each.
    """

    name: str
    annotations: str
    num_images: int
    num_images_without_annotations: int
    num_boxes: int
    num_crowds: int
    boxes_per_category: dict[str, int]
    boxes_per_size: dict[str, int]
    findings: tuple[Finding, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """One annotation file and its images, looked at.

    Attributes:
        name: "train" or "val"; "data" for a file alone.
        path: the annotation file.
        dataset: what of it is usable; None where it is no annotation file at all.
        findings: what is wrong or odd.
        unusable: kind of the fault of each image whose file cannot be used, by image id.
        decoded: what is known of each decoded image, by image id; empty before they are decoded.
    """

    name: str
    path: Path
    dataset: CocoDataset | None
    findings: Findings
    unusable: dict[int, str] = field(default_factory=dict)
    decoded: dict[int, Decoded] = field(default_factory=dict)

    def report(self) -> SplitReport:
        """Return what is in the split, in plain numbers and words."""
        categories = self.dataset.categories if self.dataset else ()
        annotations = self.dataset.annotations if self.dataset else ()
        by_image = self.dataset.annotations_by_image if self.dataset else {}
        names = {category.id: category.name for category in categories}
        boxes = [annotation for annotation in annotations if not annotation.is_crowd]
        per_category = Counter(names[annotation.category_id] for annotation in boxes)
        return SplitReport(
            name=self.name,
            annotations=str(self.path),
            num_images=len(by_image),
            num_images_without_annotations=sum(not found for found in by_image.values()),
            num_boxes=len(boxes),
            num_crowds=len(annotations) - len(boxes),
            boxes_per_category={category.name: per_category[category.name] for category in categories},
            boxes_per_size=per_size(boxes),
            findings=self.findings.found,
            faults=tuple(self.findings.faults),
            warnings=self.findings.warnings,
        )


def check_splits(config: DataConfig) -> tuple[Split, Split]:
    """Look at both splits thoroughly: as `load_splits`, decode every image, and compare those of the two splits.

    Returns:
        The training split and the validation split, with what was found.
    """
    train, val = _open_both(config)
    for split in (train, val):
        _decode(split)
    _compare_looks(train, val)
    return train, val


def check_file(path: Path, images_dir: Path) -> Split:
    """Look at one annotation file thoroughly and decode every image.

    Args:
        path: COCO JSON.
        images_dir: folder that the file names in it start from.
    """
    split = _open("data", path, images_dir)
    _decode(split)
    return split


def load_splits(config: DataConfig) -> tuple[CocoDataset, CocoDataset, tuple[str, ...]]:
    """Read both splits and check that they belong together and that their image files exist; none is opened.

    Returns:
        The training split, the validation split, and the warnings of both, one line each.

    Raises:
        DatasetError: anything is wrong; the first ten faults of both splits and their number.
    """
    train, val = _open_both(config)
    raise_faults(train.findings.faults + val.findings.faults)
    assert train.dataset is not None
    assert val.dataset is not None
    return train.dataset, val.dataset, train.findings.warnings + val.findings.warnings


def load_val(config: DataConfig) -> tuple[CocoDataset, tuple[str, ...]]:
    """Read the validation split alone and check that its image files exist; none is opened.

    Returns:
        The split and its warnings, one line each.

    Raises:
        DatasetError: anything is wrong; the first ten faults and their number.
    """
    val = _open_val(config)
    val.findings.raise_faults()
    assert val.dataset is not None
    return val.dataset, val.findings.warnings


def _open_both(config: DataConfig) -> tuple[Split, Split]:
    train = _open("train", config.root / config.train.annotations, config.root / config.train.images)
    val = _open_val(config)
    if train.dataset is not None:
        _count_untrained(train.dataset, train.findings)
        if val.dataset is not None:
            _compare_categories(train.dataset, val.dataset, val.findings)
            _count_shared(train.dataset, val.dataset, val.findings)
    return train, val


def _open_val(config: DataConfig) -> Split:
    return _open("val", config.root / config.val.annotations, config.root / config.val.images)


def _open(name: str, path: Path, images_dir: Path) -> Split:
    try:
        scan = scan_coco(path, images_dir)
    except DatasetError as error:  # look at the other file too before giving up
        findings = Findings(str(path), faults=str(error).split("\n"))
        findings.count("file", path.name)
        return Split(name, path, None, findings)
    return Split(name, path, scan.dataset, scan.findings, look_for_files(scan.dataset, scan.findings))


def _decode(split: Split) -> None:
    if split.dataset is not None:
        split.decoded.update(decode_files(split.dataset, split.unusable, split.findings))


def _compare_looks(train: Split, val: Split) -> None:
    if train.dataset is None or val.dataset is None or not train.decoded or not val.decoded:
        return
    train_ids, val_ids = list(train.decoded), list(val.decoded)
    thumbnails = [np.stack([decoded.thumbnail for decoded in split.decoded.values()]) for split in (train, val)]
    train_paths = {image.id: train.dataset.image_path(image) for image in train.dataset.images}
    val_images = {image.id: image for image in val.dataset.images}
    for val_index, train_index in find_twins(*thumbnails):
        image, twin = val_images[val_ids[val_index]], train_paths[train_ids[train_index]]
        if val.dataset.image_path(image) != twin:
            text = f"{printable(image.file_name)} like {printable(twin.relative_to(train.dataset.images_dir))}"
            val.findings.count("image-nearly-in-both-splits", text, image.id, twin=twin)


def _compare_categories(train: CocoDataset, val: CocoDataset, findings: Findings) -> None:
    if train.categories == val.categories:
        return
    expected, got = name_differences(train.categories, val.categories)
    findings.fault(
        "categories-differ",
        "'categories'",
        f"the categories of {train.path}, there {expected}",
        f"here {got}",
        "Give both files the same category ids and names.",
    )


def name_differences(expected: Sequence[Category], got: Sequence[Category]) -> tuple[str, str]:
    """Return what each of two lists of categories calls the ids that they do not both give the same name."""
    first, second = ({category.id: category.name for category in categories} for categories in (expected, got))
    differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    return _named(first, differing), _named(second, differing)


def _named(names: dict[int, str], ids: list[int]) -> str:
    return shorten([f"{key} = {names.get(key, 'nothing')!r}" for key in ids], 5)


def _count_untrained(train: CocoDataset, findings: Findings) -> None:
    used = {annotation.category_id for annotation in train.annotations if not annotation.is_crowd}
    for category in train.categories:
        if category.id not in used:
            findings.count("category-unused", f"category {category.id} '{printable(category.name)}'")


def _count_shared(train: CocoDataset, val: CocoDataset, findings: Findings) -> None:
    trained = {train.image_path(image) for image in train.images}
    for image in val.images:
        if val.image_path(image) in trained:
            findings.count("image-in-both-splits", printable(image.file_name), image.id)
