"""What the sparsifier needs of every schedule."""

import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, SupportsIndex

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError

MaskUpdate = Literal["once", "per_level", "every_k_steps"]


@dataclass(frozen=True)
class Change:
    """A change of the masks.

    Attributes:
        step: when it is due: before the forward pass of this step.
        level: level it belongs to.
        target: sparsity to prune to; None: what the pattern gives.
        swap: share of the kept weights of each tensor that give way to others, in [0, 1]; 0: `target` says it all.
    """

    step: int
    level: int
    target: float | None
    swap: float = 0.0


class BaseSchedule(ConfigModel, ABC):
    """Base of the schedules: levels one after another, each ending with an evaluation and a checkpoint.

    The masks of a level are made when it begins; a schedule may change them inside a level too.
    """

    type: str
    changes_within_levels: ClassVar[bool] = False
    """Whether the schedule itself changes masks every so many steps of a level."""
    grows: ClassVar[bool] = False
    """Whether pruned weights come back, chosen by their gradients."""

    @property
    @abstractmethod
    def target_sparsities(self) -> tuple[float | None, ...]:
        """Target of each level; None: what the pattern gives."""

    def boundaries(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step of each level; it makes the level's masks."""
        return (0,)

    def restarts(self, total_steps: int) -> tuple[int, ...]:
        """Return the step from which the learning-rate schedule of each level counts."""
        return (0,)

    @property
    def mask_update(self) -> MaskUpdate:
        """When masks are made, if the configuration does not say."""
        if self.changes_within_levels:
            return "every_k_steps"
        return "once" if len(self.target_sparsities) == 1 else "per_level"

    def change(self, step: int, total_steps: int, interval: int | None) -> Change:
        """Return the last change of the masks that is due at `step` or was before it.

        Args:
            step: 0-based.
            total_steps: steps of the run.
            interval: steps between two changes within a level; None: there are none.
        """
        starts = self.boundaries(total_steps)
        level = sum(start <= step for start in starts) - 1
        due = starts[level]
        if interval is not None:
            due = step - (step - due) % interval
        return Change(due, level, self.target_sparsities[level])


def whole_number(name: str, value: object, least: int) -> int:
    """Return a count of steps as int, whatever type of number it has.

    Raises:
        ConfigError: it is no whole number, or smaller than `least`.
    """
    number = operator.index(value) if isinstance(value, SupportsIndex) else least - 1
    if number < least:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}. Count steps from 0.")
    return number
