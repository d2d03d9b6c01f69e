"""COCO annotation files, read strictly and normalised.

What reading changes is counted and reported, never silent: boxes that reach outside their image are clipped,
boxes wholly outside and boxes without width or height are left out, missing ``area`` and ``iscrowd`` are filled in,
annotation ids below 1 or given twice lead to new ids for all. Everything else that is wrong is an error that names
file, id, expectation and finding. The policy stands in `sparsedet.detection.data.kinds`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparsedet.detection.data.boxes import BoxSurvey, inside
from sparsedet.detection.data.entries import as_bbox, escape_in, has_keys, is_a, is_number, name_of, place_of
from sparsedet.detection.data.findings import MAX_EXAMPLES, Findings, printable, shorten
from sparsedet.detection.data.images import MAX_PIXELS
from sparsedet.detection.data.json_file import parse_json, read_bytes


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

    @property
    def identity(self) -> tuple[object, ...]:
        """What two annotations of one and the same box have in common."""
        return self.image_id, self.category_id, self.is_crowd, self.bbox


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


@dataclass(frozen=True)
class Scan:
    """What an annotation file holds, usable or not.

    Attributes:
        dataset: all of it that is usable.
        findings: what was put right, is odd, or is refused.
        kept: annotation by its index in the file's list; what is missing was left out.
    """

    dataset: CocoDataset
    findings: Findings
    kept: dict[int, Annotation]


def read_coco(path: Path, images_dir: Path) -> tuple[CocoDataset, Findings]:
    """Read and normalise a COCO annotation file; images are not opened.

    Returns:
        The data set, and the warnings about what was put right.

    Raises:
        DatasetError: the file is missing, no JSON, or not consistent; the first ten faults and their number.
    """
    scan = scan_coco(path, images_dir)
    scan.findings.raise_faults()
    return scan.dataset, scan.findings


def scan_coco(path: Path, images_dir: Path) -> Scan:
    """Read a COCO annotation file as `read_coco`, but note what is refused and go on without it.

    Raises:
        DatasetError: the file is missing, no JSON, or not in COCO's format.
    """
    content = read_bytes(path)
    return scan_data(parse_json(content, path), path, images_dir, hashlib.sha256(content).hexdigest()[:16])


def scan_data(data: Any, path: Path, images_dir: Path, data_hash: str = "", max_examples: int = MAX_EXAMPLES) -> Scan:
    """Look through the parsed `data` of an annotation file and keep so many places of each finding; see `scan_coco`."""
    findings = Findings(str(path), max_examples=max_examples)
    lists = _lists(data, findings)
    findings.raise_faults()
    images = _images(lists["images"], findings)
    categories = _categories(lists["categories"], findings)
    kept = _annotations(lists["annotations"], images, set(categories), findings)
    _note_order(lists, findings)
    _note_ids(images, categories, findings)
    dataset = CocoDataset(
        path=path,
        images_dir=images_dir,
        images=tuple(image for _, image in sorted(images.items()) if image is not None),
        categories=tuple(category for _, category in sorted(categories.items())),
        annotations=tuple(kept.values()),
        data_hash=data_hash,
    )
    for image_id, found in dataset.annotations_by_image.items():
        if not found:
            findings.count("image-empty", f"image {image_id}", image_id)
    return Scan(dataset, findings, kept)


def _lists(data: Any, findings: Findings) -> dict[str, list[Any]]:
    remedy = "Give an annotation file in COCO's format for object detection."
    if not isinstance(data, dict):
        expected = "a JSON object with 'images', 'annotations' and 'categories'"
        findings.fault("file", "", expected, name_of(data), remedy)
        return {}
    for key in ("images", "annotations", "categories"):
        value = data.get(key)
        if key not in data:
            findings.fault("file", "", f"the key '{key}'", f"the keys {sorted(data)}", remedy)
        elif not isinstance(value, list):
            findings.fault("file", f"'{key}'", "a list", name_of(value), remedy)
        elif not value:
            findings.fault("file", f"'{key}'", "at least one entry", "an empty list", "Annotate some images first.")
    return data


def _images(entries: list[Any], findings: Findings) -> dict[int, ImageRecord | None]:
    """Return the images by id; None stands for one that is known but not usable."""
    images: dict[int, ImageRecord | None] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = place_of("images", index, entry)
        keys = {"id": int, "file_name": str, "width": int, "height": int}
        if not has_keys(entry, keys, "image-entry", where, findings):
            if isinstance(entry, dict) and is_a(entry.get("id"), int):
                images.setdefault(entry["id"], None)
            continue
        image = ImageRecord(entry["id"], entry["file_name"], entry["width"], entry["height"])
        if image.id in images:
            _repeated("image-id-repeated", where, findings, image.id)
            continue
        images[image.id] = image if _is_usable(image, where, findings) else None
        if image.file_name in names:
            findings.count("image-file-shared", where, image.id)
        if not image.file_name.isascii():
            findings.count("image-name-unicode", printable(image.file_name), image.id)
        names.add(image.file_name)
    return images


def _is_usable(image: ImageRecord, where: str, findings: Findings) -> bool:
    """Check size and file name of an image, noting what is wrong."""
    before = len(findings.faults)
    size = f"{image.width}x{image.height}"
    if image.width < 1 or image.height < 1:
        expected = "positive width and height"
        findings.fault("image-entry", where, expected, size, "Write the size of the image file.", image.id)
    elif image.width * image.height > MAX_PIXELS:
        expected = f"at most {MAX_PIXELS} pixels"
        remedy = "Correct the size, or cut the image into tiles."
        findings.fault("image-too-large", where, expected, f"{size} ('{image.file_name}')", remedy, image.id)
    escape = escape_in(image.file_name)
    if escape is not None:
        expected = "a file_name inside the folder of the images"
        remedy = "Write it relative to that folder."
        findings.fault("image-name-unsafe", where, expected, f"{escape}: '{image.file_name}'", remedy, image.id)
    return len(findings.faults) == before


def _categories(entries: list[Any], findings: Findings) -> dict[int, Category]:
    categories: dict[int, Category] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = place_of("categories", index, entry)
        if not has_keys(entry, {"id": int, "name": str}, "category-entry", where, findings):
            continue
        category = Category(entry["id"], entry["name"])
        if category.id in categories:
            _repeated("category-id-repeated", where, findings)
            continue
        if category.name in names:
            findings.count("category-name-shared", f"{where} '{printable(category.name)}'")
        categories[category.id] = category
        names.add(category.name)
    return categories


def _annotations(
    entries: list[Any], images: dict[int, ImageRecord | None], category_ids: set[int], findings: Findings
) -> dict[int, Annotation]:
    """Return the usable annotations by their index in `entries`."""
    annotations: dict[int, Annotation] = {}
    keys = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    ids: set[int] = set()
    survey = BoxSurvey()
    for index, entry in enumerate(entries):
        where = place_of("annotations", index, entry)
        if not has_keys(entry, keys, "annotation-entry", where, findings):
            continue
        if entry["id"] in ids:
            findings.count("annotation-id-repeated", where, entry["image_id"])
        if entry["id"] < 1:
            findings.count("annotation-id-below-1", where, entry["image_id"])
        ids.add(entry["id"])
        where = f"{where} (image {entry['image_id']})"
        if _is_consistent(entry, where, images, category_ids, findings):
            annotation = _normalised(entry, where, images[entry["image_id"]], survey, findings)
            if annotation is not None:
                annotations[index] = annotation
    survey.judge(findings)
    _note_repeated(annotations.values(), findings)
    return _numbered(annotations, findings)


def _is_consistent(
    entry: dict[str, Any],
    where: str,
    images: dict[int, ImageRecord | None],
    category_ids: set[int],
    findings: Findings,
) -> bool:
    """Check what an annotation says against the images and categories, noting what is wrong."""
    before = len(findings.faults)
    image_id = entry["image_id"]
    if image_id not in images:
        remedy = "Add the image or remove the annotation."
        findings.fault("annotation-image", where, "the id of an image in 'images'", f"image_id {image_id}", remedy)
    if entry["category_id"] not in category_ids:
        expected = f"the id of a category in 'categories' ({shorten(sorted(category_ids))})"
        remedy = "Add the category or remove the annotation."
        got = f"category_id {entry['category_id']}"
        findings.fault("annotation-category", where, expected, got, remedy, image_id)
    bbox = as_bbox(entry["bbox"])
    if bbox is None or min(bbox[2:]) < 0:
        expected = "bbox to be 4 finite numbers [x, y, width, height] with width and height not below 0"
        findings.fault(
            "box-invalid", where, expected, entry["bbox"], "Correct or remove the annotation.", image_id, bbox
        )
    if entry.get("iscrowd", 0) not in (0, 1):
        got = repr(entry["iscrowd"])
        findings.fault("iscrowd-invalid", where, "iscrowd to be 0 or 1", got, "Correct it.", image_id, bbox)
    return len(findings.faults) == before


def _normalised(
    entry: dict[str, Any], where: str, image: ImageRecord | None, survey: BoxSurvey, findings: Findings
) -> Annotation | None:
    """Return the annotation, box clipped and gaps filled, or None if nothing of it is in a usable image."""
    bbox = as_bbox(entry["bbox"])
    if image is None or bbox is None:
        return None
    survey.add(bbox, image.width, image.height, where, image.id)
    clipped = inside(bbox, image.width, image.height, where, image.id, findings)
    if clipped is None:
        return None
    box, was_clipped = clipped
    area: Any = entry.get("area")
    if not is_number(area) or area <= 0:
        findings.count("area-missing", where, image.id, bbox)
        area = box[2] * box[3]
    if was_clipped:
        area = min(area, box[2] * box[3])
    if "iscrowd" not in entry:
        findings.count("iscrowd-missing", where, image.id, bbox)
    is_crowd = bool(entry.get("iscrowd", 0))
    if is_crowd:
        findings.count("crowd", where, image.id, bbox)
    return Annotation(entry["id"], image.id, entry["category_id"], box, float(area), is_crowd)


def _note_repeated(annotations: Iterable[Annotation], findings: Findings) -> None:
    seen: set[tuple[object, ...]] = set()
    for annotation in annotations:
        if annotation.identity in seen:
            where = f"annotation {annotation.id} (image {annotation.image_id})"
            findings.count("box-repeated", where, annotation.image_id, annotation.bbox)
        seen.add(annotation.identity)


def _numbered(annotations: dict[int, Annotation], findings: Findings) -> dict[int, Annotation]:
    """Return the annotations with ids that all evaluators understand alike."""
    if not findings.num_counted("annotation-id-below-1") + findings.num_counted("annotation-id-repeated"):
        return annotations
    numbered = enumerate(annotations.items(), start=1)
    return {index: replace(annotation, id=number) for number, (index, annotation) in numbered}


def _note_order(lists: dict[str, list[Any]], findings: Findings) -> None:
    for key in ("images", "annotations", "categories"):
        ids = [entry["id"] for entry in lists[key] if isinstance(entry, dict) and is_a(entry.get("id"), int)]
        if any(second < first for first, second in pairwise(ids)):
            findings.count("ids-unsorted", f"'{key}'")


def _note_ids(images: dict[int, ImageRecord | None], categories: dict[int, Category], findings: Findings) -> None:
    for name, ids in (("image", images), ("category", categories)):
        for number in ids:
            if number == 0:
                findings.count("id-zero", f"{name} {number}")
    if categories and max(categories) - min(categories) >= len(categories):
        findings.count("category-id-gaps", shorten(sorted(categories)))


def _repeated(kind: str, where: str, findings: Findings, image_id: int | None = None) -> None:
    remedy = "Give it an unused id, or remove it."
    findings.fault(kind, where, "every id once", "this id a second time", remedy, image_id)
