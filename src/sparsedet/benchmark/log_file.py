"""``log.txt``: what a run has said, from its first start to its end."""

import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TextIO

from sparsedet.common.errors import SparseDetError

LOG_FILE = "log.txt"


class LogFile:
    """Writes lines with the time; where the disk has no room, it says so once and stops.

    Args:
        stream: where to.
        warn: told that it stops.
    """

    def __init__(self, stream: TextIO, warn: Callable[[str], None]) -> None:
        self._stream: TextIO | None = stream
        self._warn = warn

    def write(self, text: str) -> None:
        """Write `text`, which may be of several lines."""
        if self._stream is None:
            return
        try:
            self._stream.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {text}\n")
            self._stream.flush()
        except OSError as error:
            self._stream = None
            self._warn(f"{LOG_FILE} is no longer written: {error.strerror or error}")


@contextmanager
def open_log(path: Path, warn: Callable[[str], None]) -> Iterator[LogFile]:
    """Append to the log at `path`: the command, what the caller writes, and the error that ends it, if one does."""
    with path.open("a", encoding="utf-8") as stream:
        log = LogFile(stream, warn)
        log.write(f"sparsedet {metadata.version('sparsedet')}: {shlex.join(sys.argv)}")
        try:
            yield log
        except SparseDetError as error:
            log.write(f"ended: {error}")
            raise
        except BaseException:
            log.write(f"ended: {traceback.format_exc()}")
            raise
