"""Weights from one kind of file to another: compact, and back."""

from pathlib import Path

import torch

from sparsedet.benchmark.checkpoint import open_content
from sparsedet.benchmark.compact import read_any, write_compact
from sparsedet.benchmark.content import check_content
from sparsedet.benchmark.upstream.checkpoint import state_dict_of
from sparsedet.common.checkpoint import is_sparsedet
from sparsedet.common.errors import ConfigError
from sparsedet.common.files import require_new, write_atomically
from sparsedet.export.compact import SUFFIX, num_dense_bytes, save_compact, save_dense
from sparsedet.sparsity import measure


def compact(path: Path, out: Path, fp16: bool = False, zstd: bool = False, force: bool = False) -> dict[str, int]:
    """Write the weights of a checkpoint, or of a state dict of any program, as a compact file.

    Args:
        path: file of weights.
        out: file to write.
        fp16: see `save_compact`.
        zstd: see `save_compact`.
        force: overwrite `out`.

    Returns:
        ``size_bytes_dense``: bytes of the weights and buffers as they are; ``size_bytes_sparse``: bytes of `out`.

    Raises:
        CheckpointError: `path` cannot be read.
        ConfigError: `out` has another suffix than ``.safetensors``.
        MissingExtraError: zstandard is asked for and not installed.
        StorageError: `out` exists or cannot be written.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"--output: expected a file name that ends with {SUFFIX}, got '{out}'. Rename it.")
    require_new(out, force)
    content = read_any(path)
    if is_sparsedet(content):
        state = check_content(content, path)["model"]
        model = open_content(content, path).model
        write_compact(out, content, measure(model).measured_sparsity, fp16, zstd)
    else:
        state = state_dict_of(content, path)
        save_compact(out, state, fp16=fp16, zstd=zstd)
    return {"size_bytes_dense": num_dense_bytes(state), "size_bytes_sparse": out.stat().st_size}


def restore(path: Path, out: Path, force: bool = False) -> None:
    """Write the dense weights of a compact file, or of a checkpoint, alone.

    Args:
        path: file of weights.
        out: file to write: plain safetensors where its name ends so, otherwise a state dict as torch.save writes it.
        force: overwrite `out`.

    Raises:
        CheckpointError: `path` cannot be read.
        StorageError: `out` exists or cannot be written.
    """
    require_new(out, force)
    content = read_any(path)
    state = check_content(content, path)["model"] if is_sparsedet(content) else dict(state_dict_of(content, path))
    if out.suffix == SUFFIX:
        save_dense(out, state)
    else:
        write_atomically(out, lambda stream: torch.save(state, stream))
