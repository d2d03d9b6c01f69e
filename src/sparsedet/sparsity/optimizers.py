"""What a sparsifier has to know of optimizers: which one takes the steps, and what it remembers of pruned entries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.masks import Mask


def stepping(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that takes the steps: that of torch inside the wrapper of Accelerate, or itself.

    Raises:
        ConfigError: it is none of torch, or hides the steps of one.
    """
    while _is(optimizer, "AcceleratedOptimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ConfigError(
            f"optimizer: expected an optimizer of torch, got {type(optimizer).__name__}. If it steps through one of "
            "torch, attach that, and call apply_() after each of its own steps."
        )
    return optimizer


def clear_state_(optimizer: torch.optim.Optimizer, places: Sequence[tuple[Tensor, Mask]]) -> None:
    """Zero momentum and the like of some parameters, except where their masks say that it stays."""
    inner: Any = optimizer
    state: Mapping[Tensor, Any] = inner.optim.state if _is(optimizer, "ZeroRedundancyOptimizer") else optimizer.state
    for parameter, mask in places:
        for value in state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                mask.apply_(value)
    if isinstance(optimizer, torch.optim.LBFGS):
        _forget_(optimizer, places)


def _forget_(optimizer: torch.optim.LBFGS, places: Iterable[tuple[Tensor, Mask]]) -> None:
    """Let LBFGS begin anew if what it remembers moves an entry that is to be zero.

    Its vectors hold all parameters in a row, and fit each other: no entry can be zeroed by itself.
    """
    parameters = optimizer.param_groups[0]["params"]
    stays = {id(parameter): mask.keep for parameter, mask in places}
    memory = optimizer.state.get(parameters[0], {})
    values = (value for entry in memory.values() for value in (entry if isinstance(entry, list) else [entry]))
    start = 0
    vectors = [value for value in values if isinstance(value, Tensor) and value.ndim == 1]
    for parameter in parameters:
        end = start + parameter.numel() * (2 if parameter.is_complex() else 1)
        if id(parameter) in stays:
            goes = ~stays[id(parameter)].flatten()
            if any(vector[start:end][goes.to(vector.device)].any() for vector in vectors):
                memory.clear()
                return
        start = end


def _is(optimizer: object, name: str) -> bool:
    """Tell the class of an optimizer without importing what defines it."""
    return any(base.__name__ == name for base in type(optimizer).__mro__)
