"""Pretrained weights of a backbone, from a file or from torchvision's servers: all of them or an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from sparsedet.common.checkpoint import read_file
from sparsedet.common.errors import CheckpointError, ConfigError, did_you_mean

FILE_SUFFIXES = (".pth", ".pt")


def check_weights(kind: str, weights: str) -> None:
    """Check that `weights` is ``none``, a file name or a weight name that torchvision has for `kind`.

    Raises:
        ValueError: it is neither.
    """
    names = ["none", "imagenet", *(member.name for member in get_model_weights(kind))]
    if weights not in names and not weights.endswith(FILE_SUFFIXES):
        raise ValueError(
            f"expected one of {names} or a file ending in .pth or .pt, got '{weights}'."
            f"{did_you_mean(weights, names)} Correct it."
        )


def load_weights(backbone: nn.Module, kind: str, weights: str, unused: tuple[str, ...]) -> None:
    """Fill `backbone` with the weights that the configuration names.

    Args:
        backbone: module with torchvision's key names.
        kind: torchvision's name of the model, such as ``resnet18``.
        weights: a value that passes `check_weights`; ``none`` leaves the module as it is.
        unused: prefixes of keys that the backbone leaves out on purpose (classifier, levels not asked for).

    Raises:
        ConfigError: the weights cannot be downloaded.
        CheckpointError: the file cannot be read, or its keys or shapes are not those of the backbone.
    """
    if weights == "none":
        return
    state = _read(Path(weights)) if weights.endswith(FILE_SUFFIXES) else _download(kind, weights)
    state = {key: value for key, value in state.items() if not key.startswith(unused)}
    _check_fit(backbone.state_dict(), state, kind, weights)
    backbone.load_state_dict(state, strict=False)  # old files lack num_batches_tracked


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_file(path)
    except CheckpointError as error:
        if not path.exists():
            raise CheckpointError(f"weights: expected a file, got the missing '{path}'. Check the path.") from error
        raise CheckpointError(
            f"weights: expected a state dict of tensors, got the unreadable '{path}' ({_first_line(error)}). "
            "Save the model's state_dict() with torch.save."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"weights: expected a state dict of tensors, got other content in '{path}'. "
            "Save the model's state_dict() with torch.save."
        )
    return dict(state)


def _download(kind: str, weights: str) -> dict[str, Any]:
    members = get_model_weights(kind)
    url = (members.DEFAULT if weights == "imagenet" else members[weights]).url
    try:
        return dict(torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # no network, no disk, or a damaged download
        raise ConfigError(
            f"weights: expected weights that can be downloaded, got '{weights}' ({_first_line(error)}). "
            f"Fetch {url} elsewhere and give the file's path."
        ) from error


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], kind: str, weights: str) -> None:
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    named = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    faults = [f"{len(keys)} {fault} (first: {keys[0]})" for fault, keys in named if keys]
    if faults:
        raise CheckpointError(
            f"weights: expected the keys and shapes of this {kind}, got {', '.join(faults)} in '{weights}'. "
            "Check the backbone's type and width, or use weights 'none'."
        )


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
