"""Whether a data set can be trained on: its two annotation files, that they agree, and its image files."""

from collections import Counter
from dataclasses import dataclass

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import CocoDataset, read_coco
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.findings import Findings, raise_faults, shorten
from sparsedet.detection.data.images import decode_image, exif_orientation

SMALL_AREA_PX, LARGE_AREA_PX = 32**2, 96**2  # COCO's limits of small, medium and large objects

_SHARED = "image is also in the training split, so the evaluation is too good"
_UNUSED = "category has no box to learn from"
_ROTATED = "image carries an EXIF orientation; it is applied where the recorded size allows it"


@dataclass(frozen=True)
class SplitReport:
    """What is in one split.

    Attributes:
        name: "train" or "val".
        annotations: path of the annotation file.
        num_images: all images.
        num_images_without_annotations: images without any annotation.
        num_boxes: annotations that are no crowds.
        num_crowds: annotations with iscrowd 1.
        boxes_per_category: number of boxes by category name, in the order of the labels.
        boxes_per_size: number of boxes that COCO counts as small, medium and large.
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
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What is in a data set that passed all checks.

    Attributes:
        train: the split that is learned.
        val: the split that is evaluated.
        images_decoded: whether every image was opened, or only looked for.
    """

    train: SplitReport
    val: SplitReport
    images_decoded: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of both splits."""
        return self.train.warnings + self.val.warnings


def check(config: DataConfig) -> DataReport:
    """Check a data set thoroughly: as `load_splits`, and decode every image.

    Raises:
        DatasetError: anything is wrong; the first ten faults of both splits and their number.
    """
    return load_splits(config, decode=True)[2]


def load_splits(config: DataConfig, decode: bool = False) -> tuple[CocoDataset, CocoDataset, DataReport]:
    """Read both splits and check that they belong together and that their image files exist.

    Args:
        config: where the data are.
        decode: also decode every image and compare its size with the recorded one.

    Returns:
        The training split, the validation split, and the report with its warnings.

    Raises:
        DatasetError: anything is wrong; the first ten faults of both splits and their number.
    """
    splits: list[tuple[CocoDataset, Findings]] = []
    faults: list[str] = []
    for split in (config.train, config.val):
        try:
            splits.append(read_coco(config.root / split.annotations, config.root / split.images))
        except DatasetError as error:  # look at the other file too before giving up
            faults.append(str(error))
    raise_faults(faults)
    (train, train_findings), (val, val_findings) = splits
    _compare_categories(train, val, val_findings)
    _warn_untrained(train, train_findings)
    _warn_shared(train, val, val_findings)
    for dataset, findings in splits:
        _check_files(dataset, findings, decode)
    raise_faults(train_findings.faults + val_findings.faults)
    report = DataReport(_report("train", train, train_findings), _report("val", val, val_findings), decode)
    return train, val, report


def _compare_categories(train: CocoDataset, val: CocoDataset, findings: Findings) -> None:
    if train.categories == val.categories:
        return
    expected = {category.id: category.name for category in train.categories}
    got = {category.id: category.name for category in val.categories}
    differing = [key for key in sorted({*expected, *got}) if expected.get(key) != got.get(key)]
    findings.fault(
        "'categories'",
        f"the categories of {train.path}, there {_named(expected, differing)}",
        f"here {_named(got, differing)}",
        "Give both files the same category ids and names.",
    )


def _named(names: dict[int, str], ids: list[int]) -> str:
    return shorten([f"{key} = {names.get(key, 'nothing')!r}" for key in ids], 5)


def _warn_untrained(train: CocoDataset, findings: Findings) -> None:
    used = {annotation.category_id for annotation in train.annotations if not annotation.is_crowd}
    for category in train.categories:
        if category.id not in used:
            findings.count(_UNUSED, f"category {category.id} '{category.name}'")


def _warn_shared(train: CocoDataset, val: CocoDataset, findings: Findings) -> None:
    trained = {train.image_path(image) for image in train.images}
    for image in val.images:
        if val.image_path(image) in trained:
            findings.count(_SHARED, image.file_name)


def _check_files(dataset: CocoDataset, findings: Findings, decode: bool) -> None:
    missing = [image.file_name for image in dataset.images if not dataset.image_path(image).is_file()]
    if missing:
        findings.fault(
            "",
            f"{len(dataset.images)} image files in {dataset.images_dir}",
            f"{len(missing)} missing ({shorten(missing, 3)})",
            "Check the key 'images' of the split and the file names in the annotation file.",
        )
        return
    for image in dataset.images if decode else ():
        path = dataset.image_path(image)
        try:
            decode_image(path, (image.height, image.width))
        except DatasetError as error:
            findings.faults.append(str(error))
        else:
            if exif_orientation(path) != 1:
                findings.count(_ROTATED, image.file_name)


def _report(name: str, dataset: CocoDataset, findings: Findings) -> SplitReport:
    names = {category.id: category.name for category in dataset.categories}
    boxes = [annotation for annotation in dataset.annotations if not annotation.is_crowd]
    per_category = Counter(names[annotation.category_id] for annotation in boxes)
    return SplitReport(
        name=name,
        annotations=str(dataset.path),
        num_images=len(dataset.images),
        num_images_without_annotations=sum(not found for found in dataset.annotations_by_image.values()),
        num_boxes=len(boxes),
        num_crowds=len(dataset.annotations) - len(boxes),
        boxes_per_category={category.name: per_category[category.name] for category in dataset.categories},
        boxes_per_size={
            "small": sum(box.area < SMALL_AREA_PX for box in boxes),
            "medium": sum(SMALL_AREA_PX <= box.area < LARGE_AREA_PX for box in boxes),
            "large": sum(box.area >= LARGE_AREA_PX for box in boxes),
        },
        warnings=findings.warnings,
    )
