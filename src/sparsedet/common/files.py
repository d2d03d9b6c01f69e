"""Files that are either whole or absent: written beside their name, flushed to disk, then renamed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sparsedet.common.errors import StorageError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a binary stream whose content appears at `path` all at once.

    Raises:
        StorageError: the folder cannot be written or the disk is full; what stood at `path` before still stands.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with partial.open("xb") as stream:  # never through a link that someone put there
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: expected to write the file, got '{error.strerror or error}'. "
            "Free some disk space or choose another folder with --output."
        ) from error


def require_new(path: Path, force: bool) -> None:
    """Raise StorageError where there is a file at `path` already, unless it may be overwritten (`force`)."""
    if path.exists() and not force:
        raise StorageError(f"{path}: expected a new file, got one that exists. Choose another name, or use --force.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(value, indent=1, allow_nan=False)


def hash_json(value: Any) -> str:
    """Return a short, stable hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
