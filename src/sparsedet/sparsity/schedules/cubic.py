"""Cubic schedule: raise the sparsity every so many steps, fast at first and ever more slowly."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.schedules.schedule import BaseSchedule, Change


class Cubic(BaseSchedule):
    """Gradual pruning: the j-th of n raises goes to ``sparsity + (initial - sparsity) * (1 - j / n) ** 3``.

    The j-th comes ``j * update_interval`` steps after `first`, and as many are made as fit before `last`; if none
    fits, `first` prunes to the end. The run is one level: one learning-rate schedule, evaluated and saved at its end.

    Attributes:
        sparsity: target in [0, 1).
        initial: sparsity from the first step on.
        first: when the raises begin, as a share of the run.
        last: when the last one is due at the latest; what comes after trains at the target.

    Source: Zhu & Gupta 2017 (arXiv:1710.01878), eq. 1.
    """

    type: Literal["cubic"] = "cubic"
    changes_within_levels: ClassVar[bool] = True
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    initial: Annotated[float, Field(ge=0, lt=1)] = 0.0
    first: Annotated[float, Field(ge=0, lt=1)] = 0.0
    last: Annotated[float, Field(gt=0, le=1)] = 0.6

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.initial >= self.sparsity:
            raise ConfigError(
                f"initial: expected less than the sparsity {self.sparsity}, got {self.initial}. "
                "Lower it, or use the schedule one_shot."
            )
        if self.first >= self.last:
            raise ConfigError(f"first: expected less than last, {self.last}, got {self.first}. Lower it.")
        return self

    @property
    def target_sparsities(self) -> tuple[float | None, ...]:
        """Target of the only level."""
        return (self.sparsity,)

    def change(self, step: int, total_steps: int, interval: int | None) -> Change:
        """Return the last change of the masks that is due at `step` or was before it."""
        assert interval is not None
        start = int(self.first * total_steps)
        num_raises = (min(int(self.last * total_steps), total_steps - 1) - start) // interval
        if step < start:
            return Change(0, 0, self.initial)
        index = min((step - start) // interval, num_raises)
        if index >= num_raises:
            return Change(start + index * interval, 0, self.sparsity)
        raised = (self.sparsity - self.initial) * (1 - (1 - index / num_raises) ** 3)
        return Change(start + index * interval, 0, min(self.initial + raised, self.sparsity))
