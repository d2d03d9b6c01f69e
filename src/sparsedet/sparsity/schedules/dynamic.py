"""Dynamic schedule: the sparsity stays, the places move; the smallest weights give way to the largest gradients."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sparsedet.sparsity.schedules.schedule import BaseSchedule, Change


class Dynamic(BaseSchedule):
    """Prune to the sparsity before the first step; then drop and grow every ``update_interval`` steps.

    At step t each tensor drops the share ``drop_fraction / 2 * (1 + cos(pi * t / (stop * total_steps)))`` of its
    kept weights, those with the lowest scores, and grows as many: of all that are pruned then, those with the
    largest gradient in the step before. They start at 0, and the state of the optimizer with them. The run is one
    level: one learning-rate schedule, evaluated and saved at its end.

    Attributes:
        sparsity: target in [0, 1), met at every step.
        drop_fraction: share at the beginning.
        stop: when masks become fixed, as a share of the run.

    Source: Evci et al. 2020, "RigL" (arXiv:1911.11134), which takes the gradient of a batch that it does not train on.
    """

    type: Literal["dynamic"] = "dynamic"
    changes_within_levels: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    drop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.3
    stop: Annotated[float, Field(gt=0, le=1)] = 0.75

    @property
    def target_sparsities(self) -> tuple[float | None, ...]:
        """Target of the only level."""
        return (self.sparsity,)

    def change(self, step: int, total_steps: int, interval: int | None) -> Change:
        """Return the last change of the masks that is due at `step` or was before it."""
        assert interval is not None
        end = self.stop * total_steps
        due = min(step, max(math.ceil(end) - 1, 0)) // interval * interval
        if due == 0:
            return Change(0, 0, self.sparsity)
        return Change(due, 0, self.sparsity, swap=self.drop_fraction / 2 * (1 + math.cos(math.pi * due / end)))
