"""Checkpoint files: tensors and plain data, written atomically, read without executing anything from the file."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import torch

from sparsedet.common.errors import CheckpointError
from sparsedet.common.files import write_atomically
from sparsedet.common.runtime import require_space

FORMAT = "sparsedet-checkpoint"
FORMAT_VERSION = 1

# What the tensors of a file may come to, beside this many times its size: they may be views of few bytes.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**28, 16


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (nested dicts, lists, scalars and tensors) to `path`.

    Raises:
        StorageError: the disk has no room or the folder cannot be written; an older file at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, _num_bytes(content) + 2**20)
    payload = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    write_atomically(path, lambda stream: torch.save(payload, stream))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, of another program, or of a newer format.
    """
    return check_format(read_file(path), path)


class _Unread:
    """Stands for a NumPy number, which programs write beside the weights: it does nothing with what it is given."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# NumPy 1 and 2 name the function apart; none of NumPy's own runs.
_UNREAD: list[Any] = [
    (_Unread, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


def read_file(path: Path) -> Any:
    """Read a file that torch.save wrote, of whatever program, onto the CPU; nothing in it is executed.

    NumPy numbers in it are not read.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain data.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected a checkpoint file, got {kind}. Check the path.")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(_UNREAD):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, path.stat().st_size)
        return content
    except Exception as error:  # there are many kinds for a damaged file
        is_code = "nsupported" in str(error) and "nsupported operand" not in str(
            error
        )  # the latter is no pickle at all
        if isinstance(error, pickle.UnpicklingError) and is_code:
            raise CheckpointError(
                f"{path}: expected tensors and plain data, got a file that would run code when it is read. "
                "Nothing was run. Save the model's state_dict() alone with torch.save."
            ) from error
        reason = str(error).split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to read it without protection
            reason = "it was not written by torch.save"
        if not any(letter.isalpha() for letter in reason):  # an EOFError says nothing, a KeyError of pickle a number
            reason = "it was not written by torch.save" if path.stat().st_size else "it is empty"
        raise CheckpointError(
            f"{path}: expected a whole checkpoint, got an unreadable file ({reason}). "
            "It may be truncated or damaged: use an earlier checkpoint."
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that torch.save does not write: it could unpack to more than it is, or hold other bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("it is compressed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries overlap")
        if broken := archive.testzip():  # torch does not compare the sums of what it reads
            raise zipfile.BadZipFile(f"the sum of '{broken}' is wrong")


def _check_tensors(content: Any, num_file_bytes: int) -> None:
    """Refuse tensors of other kinds than layers have, and views that stand for far more than the file holds."""
    found, seen, num_bytes = [content], set(), 0
    while found:
        value = found.pop()
        if id(value) in seen:  # what stands twice is looked at once
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            found += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            found += value
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
                raise ValueError("a tensor in it is sparse, quantized, nested or without values")
            num_bytes += value.numel() * value.element_size()
    if num_bytes > MAX_UNPACKED_BYTES + MAX_RATIO * num_file_bytes:
        raise ValueError(f"its tensors claim to be {num_bytes} bytes")


def is_sparsedet(content: Any) -> bool:
    """Tell a checkpoint of sparsedet from another program's file."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_format(content: Any, path: Path) -> dict[str, Any]:
    """Return `content` if it is a checkpoint of sparsedet.

    Raises:
        CheckpointError: it is another program's, or of a newer format.
    """
    if not is_sparsedet(content):
        raise CheckpointError(
            f"{path}: expected a file written by sparsedet, got another program's. Give a checkpoint of a run folder."
        )
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format version {FORMAT_VERSION} or older, got {version}. Update sparsedet."
        )
    return cast(dict[str, Any], content)


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    return 64
