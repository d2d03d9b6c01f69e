"""The data set of the demo: handwritten digits pasted on photographs, made by code, the same each time.

Digits 0, 1, 4 and 7 of scikit-learn's `load_digits` (8 x 8 pixels) are enlarged, coloured and laid with soft
edges on cuts of the photographs that scikit-image ships as PNG. Training and validation images share neither
digits nor parts of a photograph. All arithmetic is on integers, so that every machine makes the same pixels.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image

from sparsedet.common.errors import MissingExtraError, StorageError
from sparsedet.common.files import hash_json, write_json
from sparsedet.common.runtime import writable_folder

CLASSES = (0, 1, 4, 7)
NUM_IMAGES = {"train": 800, "val": 200}
SIDE_PX = 128
VERSION = 1  # raise it whenever a pixel or a box changes: folders of another version are built anew

_MARKER = "digit_scenes.json"  # written last: a folder without it is incomplete
_TRAIN_SHARE = (5, 8)  # of a photograph's width and of each class's digits; the rest is for validation
_PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "gravel", "stereo_motorcycle")
_CELLS = 10  # a digit of 8 x 8 cells with an empty cell around it
_SIDE_PX = (20, 71)  # side of the enlarged cells, up to but not including; digits are 16 to 57 pixels high
_INK = 96  # opacity, of 255, from which a pixel belongs to the digit's box
_MIN_CONTRAST = 80  # between the brightness of a digit and the mean brightness under it, of 255
_MAX_TRIES = 20  # places tried for a digit before it is left out
_EMPTY_EVERY = 25  # one image of so many has no digit

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Material:
    """What the images of one split are made of.

    Attributes:
        photographs: uint8, shape (H, W, 3) each.
        digits: for each class, shape (N, 8, 8), values 0 to 16.
    """

    photographs: list[Pixels]
    digits: dict[int, NDArray[np.int64]]


def make_digit_scenes(folder: Path) -> Path:
    """Write the data set into `folder`, unless it is there already, and return `folder`.

    It holds ``annotations/train.json``, ``annotations/val.json`` and ``images/``: 800 training and 200
    validation images of 128 x 128 pixels with one to four digits each, a few with none. Takes some seconds.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
        StorageError: the folder cannot be written or the disk is full.
    """
    if _is_complete(folder):
        return folder
    materials = _materials()
    writable_folder(folder / "images", need_bytes=64 * 2**20)
    (folder / _MARKER).unlink(missing_ok=True)
    for number, (split, material) in enumerate(materials.items()):
        coco = _empty_coco()
        for index in range(NUM_IMAGES[split]):
            pixels, boxes = _scene(material, Generator(PCG64((number, index))))
            _add(coco, f"{split}_{index:03d}.png", boxes)
            _write_png(folder / "images" / f"{split}_{index:03d}.png", pixels)
        write_json(folder / "annotations" / f"{split}.json", coco)
    write_json(folder / _MARKER, _marker(folder))
    return folder


def _is_complete(folder: Path) -> bool:
    """Return whether this version of the data set stands in `folder`, with unchanged annotations."""
    try:
        if json.loads((folder / _MARKER).read_bytes()) != _marker(folder):
            return False
    except (OSError, ValueError):
        return False
    names = (f"{split}_{index:03d}.png" for split, number in NUM_IMAGES.items() for index in range(number))
    return all((folder / "images" / name).is_file() for name in names)


def _marker(folder: Path) -> dict[str, Any]:
    annotations = [json.loads((folder / "annotations" / f"{split}.json").read_bytes()) for split in NUM_IMAGES]
    return {"version": VERSION, "annotations_hash": hash_json(annotations)}


def _materials() -> dict[str, _Material]:
    """Return what training and validation images are made of; the two have nothing in common."""
    try:
        from skimage import data
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            f"digit scenes: expected scikit-learn and scikit-image to be installed, got '{error}'. "
            "Run: pip install 'sparsedet[demo]'."
        ) from error
    photographs = [_to_rgb(getattr(data, name)()) for name in _PHOTOGRAPHS]
    digits = load_digits()
    by_class = {digit: digits.images[digits.target == digit].astype(np.int64) for digit in CLASSES}
    return {
        "train": _Material(
            [photograph[:, : _train_part(photograph.shape[1])] for photograph in photographs],
            {digit: samples[: _train_part(len(samples))] for digit, samples in by_class.items()},
        ),
        "val": _Material(
            [photograph[:, _train_part(photograph.shape[1]) :] for photograph in photographs],
            {digit: samples[_train_part(len(samples)) :] for digit, samples in by_class.items()},
        ),
    }


def _train_part(length: int) -> int:
    return length * _TRAIN_SHARE[0] // _TRAIN_SHARE[1]


def _to_rgb(photograph: Pixels | tuple[Pixels, ...]) -> Pixels:
    """Return a photograph of scikit-image as (H, W, 3): the first of a stereo pair, gray ones repeated."""
    pixels = photograph[0] if isinstance(photograph, tuple) else photograph
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


# --- one image ---------------------------------------------------------------------------------------------


def _scene(material: _Material, random: Generator) -> tuple[Pixels, list[tuple[int, Box]]]:
    """Return an image (128, 128, 3) and the class and box (left, top, right, bottom) of each digit in it."""
    photograph = material.photographs[random.integers(len(material.photographs))]
    top, left = (int(random.integers(length - SIDE_PX + 1)) for length in photograph.shape[:2])
    scene = photograph[top : top + SIDE_PX, left : left + SIDE_PX].astype(np.int64)
    if random.integers(2):
        scene = scene[:, ::-1].copy()
    found: list[tuple[int, Box]] = []
    num_digits = 0 if random.integers(_EMPTY_EVERY) == 0 else int(random.integers(1, 5))
    for _ in range(num_digits):
        digit = CLASSES[random.integers(len(CLASSES))]
        samples = material.digits[digit]
        opacity = _enlarge(samples[random.integers(len(samples))], int(random.integers(*_SIDE_PX)))
        box = _place(opacity.shape, [box for _, box in found], random)
        if box is not None:
            _paste(scene, opacity, box, random)
            found.append((digit, box))
    return scene.astype(np.uint8), found


def _enlarge(digit: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Return the opacity, 0 to 255, of a digit enlarged bilinearly and cut to the box of its ink."""
    cells = np.pad(digit, 1)
    position = (2 * np.arange(side) + 1) * _CELLS * 128 // side - 128  # of pixel centres, in 1/256 cells
    position = position.clip(0, (_CELLS - 1) * 256)
    first = np.minimum(position // 256, _CELLS - 2)
    weight = position - first * 256
    rows = cells[first] * (256 - weight)[:, None] + cells[first + 1] * weight[:, None]
    both = rows[:, first] * (256 - weight) + rows[:, first + 1] * weight
    strong = both * 5 // 4  # so that strokes are firm; 16 * 2**16 is the darkest ink
    opacity: NDArray[np.int64] = np.minimum(strong * 255 // (16 * 2**16), 255)
    top, bottom = np.flatnonzero((opacity >= _INK).any(axis=1))[[0, -1]]
    left, right = np.flatnonzero((opacity >= _INK).any(axis=0))[[0, -1]]
    return opacity[top : bottom + 1, left : right + 1]


def _place(shape: tuple[int, ...], taken: Iterable[Box], random: Generator) -> Box | None:
    """Draw a place where at most a tenth of either box overlaps another digit, or None if none was found."""
    height, width = shape
    for _ in range(_MAX_TRIES):
        left, top = (int(random.integers(SIDE_PX - length + 1)) for length in (width, height))
        box = (left, top, left + width, top + height)
        if all(10 * _overlap(box, other) <= min(_area(box), _area(other)) for other in taken):
            return box
    return None


def _overlap(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _paste(scene: NDArray[np.int64], opacity: NDArray[np.int64], box: Box, random: Generator) -> None:
    """Blend a digit of one random colour, lighter or darker than what is under it, into `scene`."""
    left, top, right, bottom = box
    under = scene[top:bottom, left:right]
    brightness = int(under.sum()) // under.size
    while True:
        colour = random.integers(256, size=3)
        if abs(int(colour.sum()) // 3 - brightness) >= _MIN_CONTRAST:
            break
    alpha = opacity[:, :, None]
    scene[top:bottom, left:right] = (under * (255 - alpha) + colour * alpha) // 255


# --- files -------------------------------------------------------------------------------------------------


def _empty_coco() -> dict[str, list[dict[str, Any]]]:
    categories = [{"id": label, "name": str(digit)} for label, digit in enumerate(CLASSES, start=1)]
    return {"images": [], "annotations": [], "categories": categories}


def _add(coco: dict[str, list[dict[str, Any]]], file_name: str, boxes: list[tuple[int, Box]]) -> None:
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, "file_name": file_name, "width": SIDE_PX, "height": SIDE_PX})
    for digit, box in boxes:
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": CLASSES.index(digit) + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": _area(box),
                "iscrowd": 0,
            }
        )


def _write_png(path: Path, pixels: Pixels) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    try:
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise StorageError(
            f"{path}: expected to write the file, got '{error.strerror}'. "
            "Free some disk space or choose another folder."
        ) from error
