"""A folder, or a file in it, that one run at a time may write."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsedet.common.errors import StorageError

LOCK_FILE = ".lock"
FILES_LOCK = ".files.lock"
"""Held for moments, by each of several runs into one folder, while they write what they share."""


@contextmanager
def locked(folder: Path, name: str = LOCK_FILE, waits: bool = False) -> Iterator[None]:
    """Hold the lock of `folder`; the system frees it when this process ends, however it ends.

    It is a POSIX record lock: unlike that of `flock`, processes that are forked off, which may outlive this one by
    some seconds, do not hold it, and it works over NFS. Where there are no such locks, nothing is locked.

    Args:
        folder: where the file of the lock is; has to exist.
        name: of that file.
        waits: wait while another process holds it.

    Raises:
        StorageError: another process holds it; the message says which.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / name).open("a+") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            stream.seek(0)
            raise StorageError(
                f"{folder}: expected a folder that no other run writes to, got one in use by {_holder(stream.read())}. "
                "Wait for that run, end it, or choose another folder with --output."
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        stream.truncate(0)
        stream.write(json.dumps({"process": os.getpid(), "machine": platform.node()}))
        stream.flush()
        yield
        stream.truncate(0)


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['machine']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
