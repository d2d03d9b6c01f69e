"""Checkpoint files: tensors and plain data, written atomically, read without executing anything from the file."""

from pathlib import Path
from typing import Any

import torch

from sparsedet.common.errors import CheckpointError
from sparsedet.common.files import write_atomically
from sparsedet.common.runtime import require_space

FORMAT = "sparsedet-checkpoint"
FORMAT_VERSION = 1


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected a checkpoint file, got nothing. Check the path.") from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: expected a whole sparsedet checkpoint, got an unreadable file ({reason}). "
            "It may be truncated: use an earlier checkpoint."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected a file written by sparsedet, got another program's. Give a checkpoint of a run folder."
        )
    if content["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format version {FORMAT_VERSION} or older, got {content['format_version']}. "
            "Update sparsedet."
        )
    return content


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    return 64
