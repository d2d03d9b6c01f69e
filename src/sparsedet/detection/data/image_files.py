"""The image files of an annotation file: whether they are there, where they belong, and whole."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparsedet.detection.data.coco import CocoDataset, ImageRecord
from sparsedet.detection.data.duplicates import Thumbnails, thumbnail
from sparsedet.detection.data.findings import Findings, printable, shorten
from sparsedet.detection.data.images import ImageError, ImageHeader, decode_image, read_header

MAX_THREADS = 8


@dataclass(frozen=True)
class Decoded:
    """What is known of an image after decoding it."""

    header: ImageHeader
    thumbnail: Thumbnails


def look_for_files(dataset: CocoDataset, findings: Findings) -> dict[int, str]:
    """Note image files that are missing or lie outside the folder of the images; none is opened.

    Returns:
        The kind of the fault by image id.
    """
    unusable: dict[int, str] = {}
    folder = _Folder(dataset.images_dir)
    missing: list[ImageRecord] = []
    for image in dataset.images:
        path = dataset.image_path(image)
        if not path.is_file():
            unusable[image.id] = "image-missing"
            missing.append(image)
            findings.count("image-missing", printable(image.file_name), image.id)
        elif not folder.holds(path):
            unusable[image.id] = "image-name-unsafe"
            findings.fault(
                "image-name-unsafe",
                f"image {image.id}",
                "a file_name inside the folder of the images",
                f"a link out of it: '{image.file_name}' -> {path.resolve()}",
                "Put the file itself there.",
                image.id,
            )
    if missing:
        names = shorten([image.file_name for image in missing], 3)
        findings.faults.append(
            f"{findings.source}: expected {len(dataset.images)} image files in {dataset.images_dir}, "
            f"got {len(missing)} missing ({names}). "
            "Check the key 'images' of the split and the file names in the annotation file."
        )
    return unusable


def decode_files(dataset: CocoDataset, unusable: dict[int, str], findings: Findings) -> dict[int, Decoded]:
    """Decode every image but the `unusable` ones, note what is wrong or odd, and add to `unusable` what is wrong.

    Returns:
        What is known of each whole image, by id.
    """
    images = [image for image in dataset.images if image.id not in unusable]
    decoded: dict[int, Decoded] = {}
    for image, outcome in zip(images, _decode_all(dataset, images), strict=True):
        if isinstance(outcome, ImageError):
            unusable[image.id] = outcome.kind
            findings.faults.append(str(outcome))
            findings.count(outcome.kind, printable(image.file_name), image.id)
            continue
        decoded[image.id] = outcome
        if outcome.header.orientation != 1:
            findings.count("image-rotated", printable(image.file_name), image.id)
        if outcome.header.kind is not None:
            findings.count(outcome.header.kind, printable(image.file_name), image.id)
    return decoded


def _decode_all(dataset: CocoDataset, images: list[ImageRecord]) -> Iterator[Decoded | ImageError]:
    def decode(image: ImageRecord) -> Decoded | ImageError:
        path = dataset.image_path(image)
        try:
            pixels = decode_image(path, (image.height, image.width))
            return Decoded(read_header(path), thumbnail(pixels))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(decode, images)


class _Folder:
    """A folder, and which files are really in it."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._folders: dict[Path, Path] = {}

    def holds(self, file: Path) -> bool:
        """Return whether `file` lies in the folder, links followed."""
        if file.is_symlink():
            return file.resolve().is_relative_to(self._path)
        if file.parent not in self._folders:
            self._folders[file.parent] = file.parent.resolve()
        return self._folders[file.parent].is_relative_to(self._path)
