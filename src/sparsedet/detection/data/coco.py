"""COCO annotation files, read strictly and normalised.

What reading changes is counted and reported, never silent: boxes that reach outside their image are clipped,
boxes wholly outside and boxes without width or height are left out, missing ``area`` and ``iscrowd`` are filled in,
annotation ids below 1 lead to new ids for all. Everything else that is wrong is an error that names file, id,
expectation and finding.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.findings import Findings, shorten

ROUNDING_PX = 0.01  # a box may exceed its image by this without being counted: files hold rounded numbers
MIN_INSIDE_PX = 1.0  # a clipped box with less than this in it, in width or height, counts as wholly outside

_CLIPPED = "box reached outside its image and was clipped"
_OUTSIDE = "box lies outside its image (less than a pixel inside) and was left out"
_EMPTY = "box has no width or no height and was left out"
_AREA = "'area' was missing or no positive number and was set to width * height"
_CROWD = "'iscrowd' was missing and was set to 0"
_RENUMBERED = "annotation id was below 1, which evaluators lose, so all annotations were numbered from 1"
_SAME_FILE = "image names the same file as another image"
_SAME_NAME = "category has the same name as another category"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: its id, its file relative to the folder of the images, its recorded size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Category:
    """One class of objects."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object.

    Attributes:
        id: unique, >= 1.
        image_id: id of its image.
        category_id: id of its category.
        bbox: (x, y, width, height) in pixels, inside the image.
        area: in square pixels, decides whether it counts as small, medium or large.
        is_crowd: a region of many objects; a detection in it is neither right nor wrong.
    """

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class CocoDataset:
    """A normalised annotation file.

    Attributes:
        path: the annotation file.
        images_dir: folder that the file names start from.
        images: sorted by id.
        categories: sorted by id; a category's place in this order is its label.
        annotations: in the file's order.
        data_hash: 16 hex digits of the annotation file's SHA-256.
    """

    path: Path
    images_dir: Path
    images: tuple[ImageRecord, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]
    data_hash: str

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category id of each label 0..C-1."""
        return tuple(category.id for category in self.categories)

    @cached_property
    def annotations_by_image(self) -> dict[int, tuple[Annotation, ...]]:
        """Annotations of each image id; images without any are in it too."""
        found: dict[int, list[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation.image_id].append(annotation)
        return {image_id: tuple(annotations) for image_id, annotations in found.items()}

    def image_path(self, image: ImageRecord) -> Path:
        """Return the file of `image`."""
        return self.images_dir / image.file_name

    def ground_truth(self) -> dict[str, Any]:
        """Return plain COCO data on which all evaluators agree: ids >= 1, area, iscrowd, clipped boxes."""
        return {
            "images": [
                {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
            "annotations": [
                {
                    "id": annotation.id,
                    "image_id": annotation.image_id,
                    "category_id": annotation.category_id,
                    "bbox": list(annotation.bbox),
                    "area": annotation.area,
                    "iscrowd": int(annotation.is_crowd),
                }
                for annotation in self.annotations
            ],
        }


def read_coco(path: Path, images_dir: Path) -> tuple[CocoDataset, Findings]:
    """Read and normalise a COCO annotation file; images are not opened.

    Returns:
        The data set, and the warnings about what was put right.

    Raises:
        DatasetError: the file is missing, no JSON, or not consistent; the first ten faults and their number.
    """
    content = read_bytes(path)
    findings = Findings(str(path))
    data = parse_json(content, path)
    lists = _lists(data, findings)
    findings.raise_faults()
    images = _images(lists["images"], findings)
    categories = _categories(lists["categories"], findings)
    category_ids = {category.id for category in categories}
    annotations = _annotations(lists["annotations"], images, category_ids, findings)
    findings.raise_faults()
    return CocoDataset(
        path=path,
        images_dir=images_dir,
        images=tuple(images[image_id] for image_id in sorted(images)),
        categories=tuple(sorted(categories, key=lambda category: category.id)),
        annotations=annotations,
        data_hash=hashlib.sha256(content).hexdigest()[:16],
    ), findings


def read_bytes(path: Path) -> bytes:
    """Return the content of a JSON file, or raise DatasetError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: expected a JSON file, got '{error.strerror}'. Check the path.") from error


def parse_json(content: bytes, path: Path) -> Any:
    """Return the parsed `content` of `path`, or raise DatasetError when it is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: expected valid JSON, got {len(content)} bytes that are none ({error}). "
            "The file may be truncated: write or download it again."
        ) from error


def _lists(data: Any, findings: Findings) -> dict[str, list[Any]]:
    remedy = "Give an annotation file in COCO's format for object detection."
    if not isinstance(data, dict):
        expected = "a JSON object with 'images', 'annotations' and 'categories'"
        findings.fault("", expected, f"{_KINDS[type(data)]}", remedy)
        return {}
    for key in ("images", "annotations", "categories"):
        value = data.get(key)
        if key not in data:
            findings.fault("", f"the key '{key}'", f"the keys {sorted(data)}", remedy)
        elif not isinstance(value, list):
            findings.fault(f"'{key}'", "a list", _KINDS[type(value)], remedy)
        elif not value:
            findings.fault(f"'{key}'", "at least one entry", "an empty list", "Annotate some images first.")
    return data


def _images(entries: list[Any], findings: Findings) -> dict[int, ImageRecord]:
    images: dict[int, ImageRecord] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = _where("images", index, entry)
        keys = {"id": int, "file_name": str, "width": int, "height": int}
        if not _has_keys(entry, keys, where, findings):
            continue
        image = ImageRecord(entry["id"], entry["file_name"], entry["width"], entry["height"])
        if image.width < 1 or image.height < 1:
            size = f"{image.width}x{image.height}"
            findings.fault(where, "positive width and height", size, "Write the size of the image file.")
        if image.id in images:
            _duplicate(where, findings)
        if image.file_name in names:
            findings.count(_SAME_FILE, f"image {image.id}")
        images[image.id] = image
        names.add(image.file_name)
    return images


def _categories(entries: list[Any], findings: Findings) -> list[Category]:
    categories: dict[int, Category] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = _where("categories", index, entry)
        if not _has_keys(entry, {"id": int, "name": str}, where, findings):
            continue
        category = Category(entry["id"], entry["name"])
        if category.id in categories:
            _duplicate(where, findings)
        if category.name in names:
            findings.count(_SAME_NAME, f"category {category.id} '{category.name}'")
        categories[category.id] = category
        names.add(category.name)
    return list(categories.values())


def _annotations(
    entries: list[Any], images: dict[int, ImageRecord], category_ids: set[int], findings: Findings
) -> tuple[Annotation, ...]:
    annotations: list[Annotation] = []
    keys = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = _where("annotations", index, entry)
        if not _has_keys(entry, keys, where, findings):
            continue
        if entry["id"] in seen:
            _duplicate(where, findings)
        seen.add(entry["id"])
        where = f"{where} (image {entry['image_id']})"
        image = images.get(entry["image_id"])
        if _is_consistent(entry, where, image, category_ids, findings) and image is not None:
            annotation = _normalised(entry, where, image, findings)
            if annotation is not None:
                annotations.append(annotation)
    _warn_of_corners(len(entries), findings)
    return _numbered(annotations, findings)


def _is_consistent(
    entry: dict[str, Any], where: str, image: ImageRecord | None, category_ids: set[int], findings: Findings
) -> bool:
    """Check what an annotation says against the images and categories, noting what is wrong."""
    before = len(findings.faults)
    if image is None:
        remedy = "Add the image or remove the annotation."
        findings.fault(where, "the id of an image in 'images'", f"image_id {entry['image_id']}", remedy)
    if entry["category_id"] not in category_ids:
        expected = f"the id of a category in 'categories' ({shorten(sorted(category_ids))})"
        remedy = "Add the category or remove the annotation."
        findings.fault(where, expected, f"category_id {entry['category_id']}", remedy)
    if not _is_box(entry["bbox"]):
        expected = "bbox to be 4 finite numbers [x, y, width, height] with width and height not below 0"
        findings.fault(where, expected, entry["bbox"], "Correct or remove the annotation.")
    if entry.get("iscrowd", 0) not in (0, 1):
        findings.fault(where, "iscrowd to be 0 or 1", repr(entry["iscrowd"]), "Correct it.")
    return len(findings.faults) == before


def _normalised(entry: dict[str, Any], where: str, image: ImageRecord, findings: Findings) -> Annotation | None:
    """Return the annotation, box clipped and gaps filled, or None if nothing of it is in the image."""
    if 0 in entry["bbox"][2:]:  # COCO's train2017 has two such boxes
        findings.count(_EMPTY, where)
        return None
    box, moved_px = _clip(entry["bbox"], image)
    was_clipped = moved_px > ROUNDING_PX
    smaller_side = min(box[2], box[3])
    if smaller_side <= 0 or (was_clipped and smaller_side < MIN_INSIDE_PX):
        findings.count(_OUTSIDE, where)
        return None
    if was_clipped:
        findings.count(_CLIPPED, where)
    area: Any = entry.get("area")
    if not _is_number(area) or area <= 0:
        findings.count(_AREA, where)
        area = box[2] * box[3]
    if was_clipped:
        area = min(area, box[2] * box[3])
    if "iscrowd" not in entry:
        findings.count(_CROWD, where)
    is_crowd = bool(entry.get("iscrowd", 0))
    return Annotation(entry["id"], image.id, entry["category_id"], box, float(area), is_crowd)


def _warn_of_corners(num_boxes: int, findings: Findings) -> None:
    """Note that most boxes reach outside, which happens when corners are given as width and height."""
    num_outside = findings.num_counted(_CLIPPED) + findings.num_counted(_OUTSIDE)
    if num_outside > num_boxes / 2:
        findings.note(
            f"{num_outside} of {num_boxes} boxes reach outside their image. "
            "Are they corners [x1, y1, x2, y2] instead of [x, y, width, height]?"
        )


def _clip(bbox: list[float], image: ImageRecord) -> tuple[tuple[float, float, float, float], float]:
    """Return the part of `bbox` inside `image`, and by how many pixels the side that moved most has moved."""
    x, y, width, height = map(float, bbox)
    left, right = (min(max(edge, 0.0), image.width) for edge in (x, x + width))
    top, bottom = (min(max(edge, 0.0), image.height) for edge in (y, y + height))
    moved = max(abs(left - x), abs(right - (x + width)), abs(top - y), abs(bottom - (y + height)))
    if moved == 0:
        return (x, y, width, height), 0.0
    return (left, top, right - left, bottom - top), moved


def _numbered(annotations: list[Annotation], findings: Findings) -> tuple[Annotation, ...]:
    below = [annotation for annotation in annotations if annotation.id < 1]
    for annotation in below:
        findings.count(_RENUMBERED, f"annotation {annotation.id}")
    if not below:
        return tuple(annotations)
    return tuple(
        Annotation(number, old.image_id, old.category_id, old.bbox, old.area, old.is_crowd)
        for number, old in enumerate(annotations, start=1)
    )


def _has_keys(entry: Any, kinds: dict[str, type], where: str, findings: Findings) -> bool:
    """Check that `entry` is an object with these keys of these kinds, noting what is not."""
    if not isinstance(entry, dict):
        findings.fault(where, "an object", _KINDS[type(entry)], "Correct the entry.")
        return False
    fine = True
    for key, kind in kinds.items():
        value = entry.get(key)
        if key not in entry:
            findings.fault(where, f"the key '{key}'", f"the keys {sorted(entry)}", "Add it.")
            fine = False
        elif not isinstance(value, kind) or isinstance(value, bool):
            findings.fault(where, f"'{key}' to be {_KINDS[kind]}", repr(value), "Correct it.")
            fine = False
    return fine


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}


def _where(key: str, index: int, entry: Any) -> str:
    """Name an entry by its id, or by its place in the list where it has none."""
    if isinstance(entry, dict) and "id" in entry:
        return f"{_SINGULAR[key]} {entry['id']}"
    return f"{key}[{index}]"


_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def _duplicate(where: str, findings: Findings) -> None:
    findings.fault(where, "every id once", "this id a second time", "Give it an unused id, or remove it.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(bbox: list[Any]) -> bool:
    return len(bbox) == 4 and all(map(_is_number, bbox)) and bbox[2] >= 0 and bbox[3] >= 0
