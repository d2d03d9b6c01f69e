"""Data sets of YOLO, as Ultralytics lays them out, to and from COCO files.

``data.yaml`` names the classes and, for each split, a folder of images or a list of images; the labels of
``images/x.jpg`` are in ``labels/x.txt``, a line for each box: class, then centre, width and height as shares of the
image's.
"""

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import CocoDataset, ImageRecord
from sparsedet.detection.data.conversion import CocoWriter, Conversion, corners, globox, parsed, read_text
from sparsedet.detection.data.findings import BBox, printable
from sparsedet.detection.data.images import read_header

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def to_yolo(splits: Mapping[str, CocoDataset]) -> Conversion:
    """Return the files of labels, the list of images of each split, and ``data.yaml``; classes are in label order.

    Raises:
        DatasetError: two images would share a file of labels.
        MissingExtraError: globox is not installed.
    """
    result = Conversion()
    for split, dataset in splits.items():
        result.add(f"{split}.txt", "".join(f"./images/{image.file_name}\n" for image in dataset.images))
        for image in dataset.images:
            name = PurePosixPath("labels", image.file_name).with_suffix(".txt").as_posix()
            result.add(name, _labels(dataset, image))
    names = [category.name for category in next(iter(splits.values())).categories]
    listing = "".join(f"{split}: {split}.txt\n" for split in splits)
    result.add("data.yaml", f"path: .\n{listing}names:\n" + "".join(_named(*entry) for entry in enumerate(names)))
    num_crowds = sum(annotation.is_crowd for dataset in splits.values() for annotation in dataset.annotations)
    if num_crowds:
        result.notes.append(f"{num_crowds} crowds were left out: YOLO has none, so they become background")
    result.notes.append("areas are not kept; put the images into the folder images beside the labels")
    return result


def _labels(dataset: CocoDataset, image: ImageRecord) -> str:
    box_class = globox().BoundingBox
    labels = {str(category_id): label for label, category_id in enumerate(dataset.category_ids)}
    boxes = [
        box_class(label=str(annotation.category_id), **dict(zip(_SIDES, corners(annotation.bbox), strict=True)))
        for annotation in dataset.annotations_by_image[image.id]
        if not annotation.is_crowd
    ]
    size = image.width, image.height
    return "".join(f"{box.to_yolo_v5(image_size=size, label_to_id=labels)}\n" for box in boxes)


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _named(label: int, name: str) -> str:
    quoted = name.replace("'", "''")
    return f"  {label}: '{quoted}'\n"


def from_yolo(path: Path) -> Conversion:
    """Return a COCO file for each split that a ``data.yaml`` names; category ids are the classes plus 1.

    Raises:
        DatasetError: anything is missing or malformed; the message names file and line.
        MissingExtraError: globox is not installed.
    """
    about = _read_about(path)
    names = _class_names(about.get("names"), path)
    root = (path.parent / str(about.get("path") or ".")).resolve()
    result = Conversion(images_dir=root)
    for split in SPLITS:
        if about.get(split):
            result.add(f"{split}.json", _read_split(root, about[split], names, path))
    if not result.files:
        keys = printable(sorted(map(str, about)))
        raise DatasetError(f"{path}: expected one of the keys {', '.join(SPLITS)}, got {keys}. Add it.")
    return result


def _read_about(path: Path) -> dict[Any, Any]:
    try:
        about = YAML(typ="safe", pure=True).load(read_text(path))
    except (YAMLError, RecursionError, ValueError) as error:
        reason = printable(str(error).replace("\n", " "))
        raise DatasetError(f"{path}: expected YAML, got something else ({reason}). Correct it.") from error
    if not isinstance(about, dict):
        raise DatasetError(f"{path}: expected keys such as train, val and names, got none. Give a data.yaml of YOLO.")
    return about


def _class_names(given: Any, path: Path) -> dict[int, str]:
    """Return the name of each class; `given` is a list or has a name for each number."""
    names = dict(enumerate(given)) if isinstance(given, list) else given
    if isinstance(names, dict) and names and all(type(key) is int and key >= 0 for key in names):
        return {key: str(names[key]) for key in sorted(names)}
    raise DatasetError(
        f"{path}: names: expected a list of class names, or a name for each number, got {printable(given)}. Correct it."
    )


def _read_split(root: Path, given: Any, names: dict[int, str], path: Path) -> str:
    writer = CocoWriter({label + 1: name for label, name in names.items()})
    for image in _images(root, given, path):
        height, width = read_header(image).upright_size
        writer.add_image(image.relative_to(root).as_posix(), width, height)
        labels = _labels_of(image, root)
        for number, line in enumerate(read_text(labels).splitlines() if labels.is_file() else (), start=1):
            if line.strip():
                label, box = _read_line(line, (width, height), names, f"{labels}: line {number}")
                writer.add_box(label + 1, box)
    return writer.text()


def _read_line(line: str, image_size: tuple[int, int], names: dict[int, str], where: str) -> tuple[int, BBox]:
    """Return the class and the corners in pixels."""
    expected = f"a class of 0 to {max(names)} and the numbers centre x, centre y, width, height in [0, 1]"

    def parse() -> tuple[int, BBox]:
        fields = line.split()
        box = globox().BoundingBox.from_yolo_v5(line, image_size=image_size)
        label = int(fields[0])
        if label not in names or len(fields) != 5 or not all(map(math.isfinite, map(float, fields))):
            raise ValueError
        return label, (box.xmin, box.ymin, box.xmax, box.ymax)

    return parsed(parse, where, expected, printable(line))


def _images(root: Path, given: Any, path: Path) -> list[Path]:
    """Return the images of a split: of one or several folders or lists."""
    images: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        place = _below(root, str(entry), path)
        if place.suffix == ".txt":
            images += [_below(root, line.strip(), place) for line in read_text(place).splitlines() if line.strip()]
        else:
            images += sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DatasetError(f"{path}: expected images in {printable(given)} below {root}, got none. Check the paths.")
    return images


def _below(root: Path, name: str, source: Path) -> Path:
    """Return a path below `root`; what leads out of it is refused."""
    path = root / name
    if "\0" in name or not path.resolve().is_relative_to(root):
        link = "" if ".." in Path(name).parts or Path(name).is_absolute() else ", which leads out of it by a link"
        raise DatasetError(
            f"{source}: expected a path below {root}, got '{printable(name)}'{link}. Move the files there."
        )
    return root / path.relative_to(root) if path.is_absolute() else path


def _labels_of(image: Path, root: Path) -> Path:
    """Return the file of labels of an image: its path with the last folder ``images`` turned into ``labels``."""
    parts = list(image.relative_to(root).parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")
