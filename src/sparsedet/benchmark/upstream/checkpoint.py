"""Reading checkpoints of United-Perception.

Its files hold a state dict under ``model`` or ``state_dict``, or are one; keys carry ``module.`` after
distributed training, and the prefixes of merged parts after sparse runs (up_semantics §9.1, §10).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.benchmark.upstream.names import upstream_names
from sparsedet.common.errors import CheckpointError

_PREFIXES = re.compile(r"^(module\.)?(backbone_neck_roi_head\.|bbox_head\.(?=bbox_head\.))?")


def upstream_state(content: Any, model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the weights of an opened file by the names of `model`, and what it does not know by their own.

    EMA weights are preferred. Of the copies that United-Perception stores of a shared convolution any will do.
    A bare backbone is recognised by torchvision's names or United-Perception's.

    Raises:
        CheckpointError: it is no state dict, or copies of one convolution differ.
    """
    state = {_PREFIXES.sub("", key): value for key, value in state_dict_of(content, path).items()}
    native: dict[str, Tensor] = {}
    known: set[str] = set()
    for key, names in upstream_names(model).items():
        bare = [name.removeprefix("backbone.") for name in (*names, key) if key.startswith("backbone.")]
        found = [name for name in dict.fromkeys((*names, *bare)) if name in state]
        known.update(found)
        if not found:
            continue
        native[key] = state[found[0]]
        for name in found[1:]:
            if not torch.equal(state[name], native[key]):
                raise CheckpointError(
                    f"{path}: expected equal copies of one shared convolution, got different values in '{found[0]}' "
                    f"and '{name}'. The file is damaged, or of another model: use another checkpoint."
                )
    return native | {name: value for name, value in state.items() if name not in known}


def state_dict_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in the content of a file, that of averaged weights where there is one.

    Raises:
        CheckpointError: there is none.
    """
    state = content
    if isinstance(content, Mapping):
        averaged = content.get("ema")
        averaged = averaged.get("ema_state_dict") if isinstance(averaged, Mapping) else None
        state = averaged or content.get("model") or content.get("state_dict") or content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: expected a checkpoint of sparsedet or United-Perception, or a state dict of tensors, got other "
            "content. Save the model's state_dict() with torch.save."
        )
    return state
