"""Learning rates that start again where a level starts."""

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from sparsedet.common.errors import ConfigError

OPTIONS = ("lr", "momentum", "betas")
"""Options of an optimizer that LR schedulers of torch change."""


class Restart:
    """The start of an LR scheduler, kept so that it can be had again.

    Args:
        lr_scheduler: any scheduler of torch, in the wrapper of Accelerate or not, or an object with ``state_dict`` and
            ``load_state_dict``, or one whose ``step`` takes ``this_iter``; at its start.

    Attributes:
        optimizer: of the scheduler; None if it has none of torch.

    Raises:
        ConfigError: it is none of these, or was stepped already.
    """

    def __init__(self, lr_scheduler: Any) -> None:
        if any(base.__name__ == "AcceleratedScheduler" for base in type(lr_scheduler).__mro__):
            lr_scheduler = lr_scheduler.scheduler  # the wrapper has neither state nor optimizer of its own
        self._lr_scheduler = lr_scheduler
        optimizer = getattr(lr_scheduler, "optimizer", None)
        self.optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        self._takes_position = "this_iter" in _parameters(lr_scheduler)
        if self._takes_position:
            return
        if not (callable(getattr(lr_scheduler, "state_dict", None)) and hasattr(lr_scheduler, "load_state_dict")):
            raise ConfigError(
                "lr_scheduler: expected an LR scheduler with state_dict and load_state_dict, or step(this_iter=0), "
                f"got {type(lr_scheduler).__name__}. Give it one of them, or set the learning rates in the script."
            )
        position = getattr(lr_scheduler, "last_epoch", 0)
        if position > 0:
            raise ConfigError(
                "lr_scheduler: expected an LR scheduler at its start, to which every level returns, "
                f"got one at position {position}. Hand it over first, and load its state then."
            )
        self._state = deepcopy(lr_scheduler.state_dict())
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        self._options = [{key: deepcopy(group[key]) for key in OPTIONS if key in group} for group in groups]

    def state_dict(self) -> Any:
        """Return the state of the LR scheduler as it is now; None if it has none."""
        return self._lr_scheduler.state_dict() if hasattr(self._lr_scheduler, "state_dict") else None

    def restart_(self) -> None:
        """Set scheduler and optimizer back to position 0."""
        if self._takes_position:
            self._lr_scheduler.step(this_iter=0)
            return
        self._lr_scheduler.load_state_dict(deepcopy(self._state))
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        for group, options in zip(groups, self._options, strict=False):  # groups may have been added since
            for key, value in options.items():
                if isinstance(group[key], Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value


def _parameters(lr_scheduler: Any) -> tuple[str, ...]:
    step = getattr(lr_scheduler, "step", None)
    return tuple(inspect.signature(step).parameters) if callable(step) else ()
