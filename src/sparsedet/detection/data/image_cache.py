"""Decoded images on disk, so that each is decoded once for all epochs, worker processes, ranks and runs.

A file holds the bare pixels of one image, so that nothing of it is parsed, and the operating system keeps what is read
often in memory, once for all processes. The folder never holds more than the recipe allows: whoever adds a file
holds a lock on ``size``, the file with the number of bytes so far. When there is no more room, or the disk is full,
what is there goes on being read and nothing is added.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import PIL
import torch
import torchvision
from pydantic import Field
from torch import Tensor

from sparsedet.common.config import ConfigModel

logger = logging.getLogger(__name__)

_SUFFIX, _PARTIAL = ".rgb", ".partial"
_MADE_BY = [PIL.__version__, torch.__version__, torchvision.__version__, 1]  # another of them may make other pixels
_FULL, _DAMAGED = 0, 1  # places in `ImageCache._told`


class ImageCacheConfig(ConfigModel):
    """Where decoded images are kept.

    Attributes:
        folder: on a fast disk; splits, processes and runs may share it. It can be deleted at any time.
        max_gb: the folder's images take at most this many gigabytes (10^9 bytes); those for which there is no room are
            decoded each time.
    """

    folder: Path
    max_gb: Annotated[float, Field(gt=0)]


class ImageCache:
    """The images in the folder of a cache; worker processes get copies that warn once all together.

    Args:
        config: folder and limit. The folder is made; what it holds is counted anew.
    """

    def __init__(self, config: ImageCacheConfig) -> None:
        self._folder = config.folder
        self._max_bytes = round(config.max_gb * 1e9)
        self._told = torch.zeros(2, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]  # torch's own
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as stream:
                for partial in self._folder.glob(f"*{_PARTIAL}"):  # of a process that was killed
                    partial.unlink()
                entries = [entry for entry in os.scandir(self._folder) if entry.name.endswith(_SUFFIX)]
                _write_number(stream, sum(entry.stat().st_size for entry in entries))
        except OSError as error:
            self._stop(error.strerror or str(error))

    def get(self, path: Path, variant: str, size: tuple[int, int], make: Callable[[], Tensor]) -> Tensor:
        """Return the image of a file, from the cache or by `make`, whose result is added to the cache.

        Args:
            path: the image file; when its length or time of change is another, so is the image.
            variant: what is done to the image after decoding, in words.
            size: (height, width) of the result, in pixels.
            make: decodes and resizes; must return a uint8 tensor of shape (3, height, width).
        """
        try:
            status = path.stat()
        except OSError:
            return make()  # which knows what to say
        key = json.dumps([str(path.absolute()), status.st_size, status.st_mtime_ns, variant, size, _MADE_BY])
        file = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{_SUFFIX}"
        image = self._read(file, size)
        if image is None:
            image = make()
            self._add(file, np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        return image

    def _read(self, file: Path, size: tuple[int, int]) -> Tensor | None:
        num_bytes = size[0] * size[1] * 3
        try:
            pixels = np.fromfile(file, np.uint8, num_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn(_DAMAGED, f"{file}: expected a file that can be read, got '{error.strerror}'")
            return None
        if len(pixels) != num_bytes:
            self._warn(_DAMAGED, f"{file}: expected {num_bytes} bytes, got a file of another length")
            return None
        return torch.from_numpy(pixels.reshape(*size, 3)).permute(2, 0, 1)

    def _add(self, file: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        if self._told[_FULL]:
            return
        partial = file.with_suffix(_PARTIAL)
        try:
            with self._locked() as stream:
                num_bytes = _read_number(stream) + pixels.nbytes
                if num_bytes > self._max_bytes:
                    self._stop(f"{self._max_bytes / 1e9:g} GB of images, as many as data.cache.max_gb allows")
                    return
                _write_number(stream, num_bytes)
                pixels.tofile(partial)
                partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._stop(error.strerror or str(error))

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Open the file with the number of bytes, for one process at a time."""
        try:
            import fcntl
        except ImportError as error:  # Windows
            raise OSError(errno.ENOLCK, "no locks on this system") from error
        path = self._folder / "size"
        path.touch()
        with path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _stop(self, reason: str) -> None:
        """Add no more images."""
        self._warn(_FULL, f"{self._folder}: expected room for another image, got '{reason}'")

    def _warn(self, what: int, message: str) -> None:
        if not self._told[what]:
            self._told[what] = True
            remedy = (
                "Images that are not in the cache are decoded each time."
                if what == _FULL
                else "The image is decoded again."
            )
            logger.warning("%s. %s", message, remedy)


def _read_number(stream: BinaryIO) -> int:
    stream.seek(0)
    return int(stream.read() or b"0")


def _write_number(stream: BinaryIO, number: int) -> None:
    stream.seek(0)
    stream.write(b"%020d" % number)  # always as long, so that a full disk has room for it
    stream.flush()
