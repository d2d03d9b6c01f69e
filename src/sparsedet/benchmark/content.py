"""What a checkpoint of an experiment must hold, whoever wrote it."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sparsedet.common.checkpoint import check_format
from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import CheckpointError

Count = Annotated[int, Field(ge=0)]


class _About(ConfigModel):
    """The plain data of a checkpoint; see `SavedDetector`."""

    experiment: str
    recipe: str
    categories: tuple[tuple[int, str], ...] = Field(min_length=1)
    level: Count
    step: Count
    metrics: dict[str, float]
    num_pruned: dict[str, Count] | None


def check_content(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a file that was read from `path` if it is what a run writes, tensors of any shape.

    Raises:
        CheckpointError: it is another program's, of a newer format, or something in it is missing or of another kind.
    """
    found = check_format(content, path)
    sparsifier = found.get("sparsifier") or {}
    try:
        masks = sparsifier.get("masks", {})
        about = {key: found[key] for key in _About.model_fields if key in found}
        _About.model_validate_json(json.dumps({**about, "num_pruned": sparsifier.get("num_pruned")}), strict=True)
        for key, value in found["model"].items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise TypeError(f"'{key}' under 'model' is no tensor")
        for key, value in masks.items():
            if key not in found["model"] or not isinstance(value, Tensor) or value.dtype != torch.bool:
                raise TypeError(f"'{key}' is no mask of its weights")
            if value.shape != found["model"][key].shape:
                raise TypeError(f"the mask of '{key}' has another shape than its weight")
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the content of a checkpoint, got another ({_reason(error)}). "
            "The file is damaged: use another checkpoint."
        ) from error
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).split("\n")[0]
