"""Feed readers with damaged input: whatever it is, only sparsedet's own errors may come out.

Each input is made of a sound one by up to eight damages, drawn from (seed, number of the input). A target is a function
that makes an input and one that reads it and checks what is accepted; one more target is one more line in TARGETS.
"""

import argparse
import io
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from damage import damage_bytes, damage_value
from fuzz_files import FILE_TARGETS
from PIL import Image

from sparsedet.common.errors import SparseDetError
from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.data.images import decode_image, read_header


def sound_coco() -> dict[str, Any]:
    """Return a small sound annotation file."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2, 3)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {
                "id": n,
                "image_id": 1 + n % 3,
                "category_id": (3, 7)[n % 2],
                "bbox": [1.0 * n, 1.0 * n, 10.0, 9.5],
                "area": 95.0,
                "iscrowd": n % 5 == 0,
            }
            for n in range(1, 13)
        ],
    }


def make_coco(random: Random) -> bytes:
    """Return a damaged annotation file."""
    data: Any = sound_coco()
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        data = damage_value(data, random)
    try:
        content = json.dumps(data, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):  # deeper, or a longer number, than Python writes
        content = b"[" * 100_000 + b"9" * 5000
    return damage_bytes(content, random) if random.random() < 0.2 else content


def read_coco_bytes(content: bytes, folder: Path) -> None:
    """Read an annotation file; what is accepted must be what every evaluator understands alike."""
    path = folder / "annotations.json"
    path.write_bytes(content)
    dataset, findings = read_coco(path, folder)
    sizes = {image.id: (image.width, image.height) for image in dataset.images}
    ids = [annotation.id for annotation in dataset.annotations]
    assert len(set(ids)) == len(ids)
    assert not ids or min(ids) >= 1
    for annotation in dataset.annotations:
        x, y, width, height = annotation.bbox
        image_width, image_height = sizes[annotation.image_id]
        assert x >= 0
        assert y >= 0
        assert width > 0
        assert height > 0
        assert x + width <= image_width * (1 + 1e-12)
        assert y + height <= image_height * (1 + 1e-12)
        assert math.isfinite(annotation.area)
        assert annotation.category_id in dataset.category_ids
    assert min(dataset.category_ids) >= 0
    for image in dataset.images:
        assert image.id >= 0
        assert dataset.image_path(image).resolve().is_relative_to(folder.resolve())
    check_text("\n".join(findings.warnings))


@cache
def sound_images() -> tuple[bytes, ...]:
    """Return small images in several formats and modes, with EXIF where the format has it."""
    noise = bytes(Random(0).randrange(256) for _ in range(24 * 16 * 3))
    image = Image.frombytes("RGB", (24, 16), noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    images = []
    for name, mode, options in (
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {"exif": exif}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("TIFF", "RGB", {"exif": exif, "compression": "tiff_lzw"}),
        ("TIFF", "L", {}),
        ("WEBP", "RGBA", {"exif": exif}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("PPM", "L", {}),
        ("JPEG2000", "RGB", {}),
    ):
        stream = io.BytesIO()
        image.convert(mode).save(stream, name, **options)
        images.append(stream.getvalue())
    return tuple(images)


def make_image(random: Random) -> bytes:
    """Return a damaged image file; most damages are near its start, where the header is."""
    content = bytearray(random.choice(sound_images()))
    if random.random() < 0.3:
        return damage_bytes(bytes(content), random)
    for _ in range(random.randrange(1, 5)):
        place = min(int(random.expovariate(1 / 60)), len(content) - 1)
        content[place] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
    return bytes(content)


def read_image(content: bytes, folder: Path) -> None:
    """Decode an image file; what is accepted is a tensor of the size that its header says."""
    path = folder / "image"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about odd metadata
        pixels = decode_image(path)
        header = read_header(path)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    assert sorted(pixels.shape[1:]) == sorted((header.height, header.width))


def check_text(text: str) -> None:
    """Check that a message can be printed anywhere and is not endless."""
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text) < 20_000


TARGETS: dict[str, tuple[Callable[[Random], Any], Callable[[Any, Path], None]]] = {
    "coco": (make_coco, read_coco_bytes),
    "image": (make_image, read_image),
    **FILE_TARGETS,
}


def fuzz(
    target: str, num_inputs: int, seed: int, first: int = 0, seconds: float = math.inf
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Read so many inputs, or as many as `seconds` allow.

    Returns:
        How each ended, and number and traceback of those that ended otherwise.
    """
    make, read = TARGETS[target]
    started = time.perf_counter()
    ends: Counter[str] = Counter()
    crashes: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + num_inputs):
            if time.perf_counter() - started > seconds:
                break
            value = make(Random(f"{seed} {number}"))
            try:
                end = "accepted"
                try:
                    read(value, Path(folder))
                except SparseDetError as error:
                    end = type(error).__name__
                    check_text(str(error))
            except Exception:
                end = "crash"
                crashes.append((number, traceback.format_exc()))
            ends[end] += 1
    return ends, crashes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input: one alone with --inputs 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for each target; it stops then")
    options = parser.parse_args(arguments)
    crashed = False
    for target in options.targets:
        started = time.perf_counter()
        ends, crashes = fuzz(target, options.inputs, options.seed, options.first, options.seconds)
        seconds = time.perf_counter() - started
        counts = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()))
        print(f"{target}: {sum(ends.values())} inputs, seed {options.seed}, {seconds:.0f} s: {counts}")
        for number, text in crashes[:5]:
            print(f"input {number}:\n{text}")
        crashed |= bool(crashes)
    sys.exit(1 if crashed else 0)


if __name__ == "__main__":
    main()
