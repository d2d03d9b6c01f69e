"""JSON files from anywhere, read within limits."""

import json
import stat
from pathlib import Path
from typing import Any

from sparsedet.common.errors import DatasetError

MAX_BYTES = 4 * 2**30  # COCO's train2017 has 0.45 GB, LVIS 1.1 GB; parsed, a file takes some ten times its size


def read_bytes(path: Path) -> bytes:
    """Return the content of a JSON file.

    Raises:
        DatasetError: it cannot be read, is no ordinary file, or has more than `MAX_BYTES`.
    """
    expected = f"{path}: expected a JSON file"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe or device may never end
            raise DatasetError(f"{expected}, got no ordinary file. Check the path.")
        if about.st_size > MAX_BYTES:
            size = f"{about.st_size} bytes"
            raise DatasetError(f"{expected} of at most {MAX_BYTES} bytes, got {size}. Split it into several data sets.")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{expected}, got '{error.strerror}'. Check the path.") from error


def parse_json(content: bytes, path: Path) -> Any:
    """Return the parsed `content` of `path`.

    Raises:
        DatasetError: it is no JSON, is nested too deeply, or does not fit into memory.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DatasetError(
            f"{path}: expected JSON nested less than some hundred levels, got {len(content)} bytes nested deeper "
            f"({error}). No annotation file needs that: write or download it again."
        ) from error
    except MemoryError as error:
        raise DatasetError(
            f"{path}: expected JSON that fits into memory, got {len(content)} bytes that do not. "
            "Split it into several data sets, or leave out the segmentations."
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"{path}: expected valid JSON, got {len(content)} bytes that are none ({error}). "
            "The file may be truncated: write or download it again."
        ) from error
