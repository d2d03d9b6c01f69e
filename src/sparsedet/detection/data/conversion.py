"""What conversions between COCO files and other formats of data sets share; each format has its own module."""

import importlib
import json
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sparsedet.common.errors import DatasetError, MissingExtraError, StorageError
from sparsedet.common.files import write_text
from sparsedet.detection.data.findings import BBox

MAX_BYTES = 2**26  # of a file of labels, a list or an XML file

T = TypeVar("T")


@dataclass
class Conversion:
    """What a conversion makes.

    Attributes:
        files: text by path, relative to the folder it is written to.
        images_dir: folder that the file names in COCO files start from; None for other formats.
        notes: what the target cannot hold or holds otherwise, one line each.
    """

    files: dict[str, str] = field(default_factory=dict)
    images_dir: Path | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        """Add a file, or raise DatasetError when two images would share it."""
        if name in self.files:
            raise DatasetError(
                f"{name}: expected one image for each file of labels, got two: the same one in both splits, or two "
                "whose names differ in the suffix only. Remove or rename one."
            )
        self.files[name] = text

    def write(self, folder: Path) -> None:
        """Write all files.

        Raises:
            StorageError: one of them exists, or cannot be written.
        """
        for name in self.files:
            if (folder / name).exists():
                raise StorageError(
                    f"--output: expected a folder without {name}, got {folder}, which has it. Choose another folder."
                )
        for name, text in self.files.items():
            write_text(folder / name, text)


class CocoWriter:
    """Collects the entries of a COCO file.

    Args:
        names: of the categories, by id.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = [{"id": number, "name": name} for number, name in names.items()]

    def add_image(self, file_name: str, width: int, height: int) -> None:
        """Add an image, to which the next boxes belong."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": file_name, "width": width, "height": height})

    def add_box(self, category_id: int, corners: BBox, is_crowd: bool = False) -> None:
        """Add a box by its corners (x1, y1, x2, y2), in pixels."""
        x, y, x2, y2 = (round(value, 4) for value in corners)  # without what is left of a division by the image size
        width, height = round(x2 - x, 4), round(y2 - y, 4)
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": len(self._images),
                "category_id": category_id,
                "bbox": [x, y, width, height],
                "area": round(width * height, 4),
                "iscrowd": int(is_crowd),
            }
        )

    def text(self) -> str:
        """Return the file."""
        return json.dumps({"images": self._images, "annotations": self._annotations, "categories": self._categories})


def corners(bbox: BBox) -> BBox:
    """Return (x1, y1, x2, y2) of (x, y, width, height)."""
    x, y, width, height = bbox
    return x, y, x + width, y + height


def globox() -> Any:
    """Return the package globox, which knows the lines and elements of the formats.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("globox")
    except ImportError as error:
        raise MissingExtraError(
            "convert: expected the package globox, got nothing. Run: pip install 'sparsedet[convert]'"
        ) from error


def read_text(path: Path) -> str:
    """Return the content of a small text file.

    Raises:
        DatasetError: it is missing, no ordinary file, not UTF-8, or has more than `MAX_BYTES`.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe or device may never end
            raise DatasetError(f"{path}: expected a text file in UTF-8, got no ordinary file. Check the path.")
        if about.st_size > MAX_BYTES:
            raise DatasetError(
                f"{path}: expected a text file of at most {MAX_BYTES} bytes, got {about.st_size}. Split the data."
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other bytes"
        raise DatasetError(f"{path}: expected a text file in UTF-8, got '{reason}'. Check the path.") from error


def parsed(parse: Callable[[], T], where: str, expected: str, got: str) -> T:
    """Return what `parse` returns, or raise DatasetError where it raises what globox raises on bad input."""
    try:
        return parse()
    except (ValueError, KeyError, TypeError, AssertionError, globox().ParsingError) as error:
        raise DatasetError(f"{where}: expected {expected}, got '{got}'. Correct it.") from error
