"""Data sets of Pascal VOC to and from COCO files.

``Annotations/x.xml`` for each image, images in ``JPEGImages``, splits in ``ImageSets/Main``. Corners are taken as they
are: not shifted by the one pixel from which the original challenge counts, as most programs that write the format do
not. ``difficult`` is COCO's ``iscrowd``: neither right nor wrong.
"""

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import CocoDataset, ImageRecord
from sparsedet.detection.data.conversion import CocoWriter, Conversion, corners, globox, parsed, read_text
from sparsedet.detection.data.entries import escape_in
from sparsedet.detection.data.findings import BBox, printable

LISTS = Path("ImageSets", "Main")


def to_voc(splits: Mapping[str, CocoDataset]) -> Conversion:
    """Return an XML file for each image and the list of images of each split.

    Raises:
        DatasetError: two images would share an XML file.
        MissingExtraError: globox is not installed.
    """
    result = Conversion()
    for split, dataset in splits.items():
        stems = [PurePosixPath(image.file_name).with_suffix("").as_posix() for image in dataset.images]
        result.add((LISTS / f"{split}.txt").as_posix(), "".join(f"{stem}\n" for stem in stems))
        for image, stem in zip(dataset.images, stems, strict=True):
            result.add(f"Annotations/{stem}.xml", _xml(dataset, image))
    result.notes.append("areas are not kept; put the images into the folder JPEGImages")
    return result


def _xml(dataset: CocoDataset, image: ImageRecord) -> str:
    names = {category.id: category.name for category in dataset.categories}
    found = dataset.annotations_by_image[image.id]
    box_class = globox().BoundingBox
    boxes = []
    for annotation in found:
        x, y, x2, y2 = corners(annotation.bbox)
        boxes.append(box_class(label=names[annotation.category_id], xmin=x, ymin=y, xmax=x2, ymax=y2))
    root = globox().Annotation(image.file_name, (image.width, image.height), boxes).to_pascal_voc()
    for side in root.iterfind("object/bndbox/*"):
        side.text = f"{float(side.text or 0):.10g}"  # many programs read integers only
    for node, annotation in zip(root.iter("object"), found, strict=True):
        ElementTree.SubElement(node, "difficult").text = str(int(annotation.is_crowd))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def from_voc(folder: Path, images_dir: Path) -> Conversion:
    """Return a COCO file for each list in ``ImageSets/Main``, or ``all.json`` without any; categories sorted by name.

    Lists of one class (``dog_train.txt``) are passed over.

    Raises:
        DatasetError: anything is missing or malformed; the message names the file.
        MissingExtraError: globox is not installed.
    """
    splits = {
        path.stem: _listed(folder, path) for path in sorted((folder / LISTS).glob("*.txt")) if "_" not in path.stem
    }
    splits = splits or {"all": sorted((folder / "Annotations").rglob("*.xml"))}
    images = {path: _Image(path) for paths in splits.values() for path in paths}
    if not images:
        raise DatasetError(f"{folder / 'Annotations'}: expected XML files, got none. Check the folder.")
    names = sorted({name for image in images.values() for name, _, _ in image.boxes})
    ids = {name: number for number, name in enumerate(names, start=1)}
    result = Conversion(images_dir=images_dir)
    for split, paths in splits.items():
        writer = CocoWriter({number: name for name, number in ids.items()})
        for path in paths:
            image = images[path]
            writer.add_image(image.file_name, *image.size)
            for name, box, is_difficult in image.boxes:
                writer.add_box(ids[name], box, is_difficult)
        result.add(f"{split}.json", writer.text())
    num_difficult = sum(is_difficult for image in images.values() for _, _, is_difficult in image.boxes)
    if num_difficult:
        result.notes.append(f"{num_difficult} difficult objects became crowds: neither right nor wrong")
    return result


def _listed(folder: Path, path: Path) -> list[Path]:
    """Return the XML files that a list of images names, one on each line."""
    stems = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for stem in stems:
        if escape_in(stem) is not None:
            raise DatasetError(f"{path}: expected names below Annotations, got '{printable(stem)}'. Correct it.")
    return [folder / "Annotations" / f"{stem}.xml" for stem in stems]


class _Image:
    """What an XML file says: name of the image, (width, height), and of each box name, corners, difficult."""

    def __init__(self, path: Path) -> None:
        text = read_text(path)
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            raise DatasetError(f"{path}: expected XML, got something else ({error}). Correct it.") from error
        found = {key: root.findtext(key) or "" for key in ("filename", "size/width", "size/height")}
        expected = "filename, and width and height in size"
        width, height = found["size/width"], found["size/height"]
        self.size = parsed(lambda: (int(width), int(height)), str(path), expected, printable(found))
        self.file_name = found["filename"]
        if not self.file_name:
            raise DatasetError(f"{path}: expected {expected}, got '{printable(found)}'. Correct it.")
        self.boxes = [self._box(node, f"{path}: object {number}") for number, node in enumerate(root.iter("object"))]

    @staticmethod
    def _box(node: Any, where: str) -> tuple[str, BBox, bool]:
        def parse() -> tuple[str, BBox, bool]:
            box = globox().BoundingBox.from_xml(node)
            sides = box.xmin, box.ymin, box.xmax, box.ymax
            if not all(map(math.isfinite, sides)):
                raise ValueError
            return box.label, sides, node.findtext("difficult") == "1"

        got = printable(ElementTree.tostring(node, encoding="unicode"))
        return parsed(parse, where, "a name, and xmin, ymin, xmax, ymax in bndbox with each maximum above", got)
