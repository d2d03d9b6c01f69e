"""Compact weight files of experiments: written beside each checkpoint, read wherever a checkpoint is."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch import Tensor

from sparsedet.common.checkpoint import FORMAT, FORMAT_VERSION, read_file
from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import CheckpointError
from sparsedet.export.compact import SUFFIX, read_weights, save_compact

WEIGHTS_FILE = "weights.safetensors"

Count = Annotated[int, Field(ge=0)]


class Origin(ConfigModel):
    """What a compact file says of the detector whose weights it holds.

    Attributes:
        experiment: name of its experiment.
        recipe: resolved recipe.
        categories: id and name of the category of each label.
        level: 0-based index of its level.
        step: number of optimizer steps done.
        metrics: COCO metrics measured when it was saved.
        sparsity: zeros over all conv/linear weights, counted when it was saved.
        num_pruned: entries that its masks prune, by the name of each pruned weight; empty for a dense detector.
    """

    experiment: str
    recipe: dict[str, Any]
    categories: tuple[tuple[int, str], ...]
    level: Count
    step: Count
    metrics: dict[str, float]
    sparsity: Annotated[float, Field(ge=0, le=1)]
    num_pruned: dict[str, Count]


def write_compact(path: Path, content: dict[str, Any], sparsity: float, fp16: bool = False, zstd: bool = False) -> None:
    """Write the weights of a checkpoint as a compact file.

    Args:
        path: file to write.
        content: content of the checkpoint.
        sparsity: zeros over all its conv/linear weights.
        fp16: see `save_compact`.
        zstd: see `save_compact`.

    Raises:
        MissingExtraError: zstandard is asked for and not installed.
        StorageError: the file cannot be written.
    """
    masks: dict[str, Tensor] = content["sparsifier"]["masks"] if content["sparsifier"] else {}
    origin = Origin(
        experiment=content["experiment"],
        recipe=json.loads(content["recipe"]),
        categories=tuple((category_id, name) for category_id, name in content["categories"]),
        level=content["level"],
        step=content["step"],
        metrics=content["metrics"],
        sparsity=sparsity,
        num_pruned={name: int((~mask).sum()) for name, mask in masks.items()},
    )
    save_compact(path, content["model"], fp16=fp16, zstd=zstd, info=origin.model_dump(mode="json"))


def read_any(path: Path) -> Any:
    """Read a file of weights: what torch.save wrote, or safetensors, compact or plain, of whatever program.

    Returns:
        For a compact file of an experiment what a checkpoint holds, without the trainer's state and with masks
        that are the places of its zeros; otherwise what is in the file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain data.
    """
    if path.suffix != SUFFIX:
        return read_file(path)
    file = read_weights(path)
    if file.info is None or "recipe" not in file.info:
        return file.state
    try:
        origin = Origin.model_validate_json(json.dumps(file.info), strict=True)
        masks = {name: file.state[name] != 0 for name in origin.num_pruned}
    except (ValidationError, KeyError) as error:
        reason = f"no tensor {error}"
        if isinstance(error, ValidationError):
            fault = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise CheckpointError(
            f"{path}: expected what sparsedet says of a detector in the metadata, got something else ({reason}). "
            "Write the file again from its checkpoint."
        ) from error
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "experiment": origin.experiment,
        "recipe": json.dumps(origin.recipe),
        "categories": [list(category) for category in origin.categories],
        "level": origin.level,
        "step": origin.step,
        "metrics": origin.metrics,
        "model": file.state,
        "sparsifier": {"level": origin.level, "masks": masks, "num_pruned": origin.num_pruned} if masks else None,
    }
