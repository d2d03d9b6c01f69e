"""Writing checkpoints that United-Perception can load."""

import math
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark.checkpoint import open_checkpoint
from sparsedet.benchmark.upstream.names import upstream_names
from sparsedet.common.files import require_new, write_atomically


def convert_checkpoint(path: Path, out: Path, sparse_prefix: bool = False, force: bool = False) -> None:
    """Write the weights of a sparsedet checkpoint with United-Perception's key names.

    Args:
        path: sparsedet's checkpoint.
        out: file to write: a dict with ``model``, ``iter``, the number of steps done, and, where the recipe states
            ``data.num_train_images``, ``epoch``, the number of epochs done or begun.
        sparse_prefix: write the names of United-Perception's sparse runs, which begin with those of merged parts.
        force: overwrite `out`.

    Raises:
        CheckpointError: `path` cannot be read.
        StorageError: `out` exists or cannot be written.
    """
    require_new(out, force)
    saved = open_checkpoint(path)
    names = upstream_names(saved.model)
    state = {
        _in_sparse_run(name) if sparse_prefix else name: value
        for key, value in saved.model.state_dict().items()
        for name in names[key]
    }
    content: dict[str, Any] = {"model": state, "iter": saved.step}
    if num_images := saved.recipe.data.num_train_images:
        content["epoch"] = math.ceil(saved.step / saved.recipe.training.steps_per_epoch(num_images))
    write_atomically(out, lambda stream: torch.save(content, stream))


def _in_sparse_run(name: str) -> str:
    """Return the name in a sparse run, where all parts but the box head are merged into one (up_semantics §10)."""
    return ("bbox_head." if name.startswith("bbox_head.") else "backbone_neck_roi_head.") + name
