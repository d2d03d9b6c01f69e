"""The ``sparsity:`` block of a recipe: schedule, allocation, criterion, pattern and targets."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.allocation import Allocation, Lamp
from sparsedet.sparsity.criteria import Criterion, Magnitude
from sparsedet.sparsity.patterns import Pattern, Unstructured
from sparsedet.sparsity.schedules import Schedule
from sparsedet.sparsity.targets import Targets


def _default_allocation(values: dict[str, Any]) -> Lamp | None:
    pattern = values.get("pattern")
    return Lamp() if pattern is None or pattern.fixed_sparsity is None else None


class SparsityConfig(ConfigModel):
    """What is pruned, how much, when and in which shape.

    Attributes:
        targets: which weights.
        criterion: which weight of a tensor matters.
        pattern: where zeros may stand.
        schedule: when, and how much in total.
        allocation: how much of it each tensor gets; default LAMP. None with a pattern that fixes the share,
            such as 2:4.
        scope: what a target sparsity is a share of: ``all`` conv and linear weights of the model (what is
            left out is made up for by the rest), or the ``chosen`` ones. Exactly ``round(target * weights)``
            weights go, half to even.
        input_shape: shape of one example input, such as (1, 3, 800, 1333), for MACs and stride groups.
    """

    targets: Targets = Targets()
    criterion: Criterion = Magnitude()
    pattern: Pattern = Unstructured()
    schedule: Schedule
    allocation: Allocation | None = Field(default_factory=_default_allocation)
    scope: Literal["all", "chosen"] = "all"
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        fixed = self.pattern.fixed_sparsity
        targets = self.schedule.target_sparsities
        if fixed is None:
            if self.allocation is None:
                raise ConfigError(
                    "allocation: expected a rule with the unstructured pattern, got null. Write type: lamp."
                )
            if None in targets:
                raise ConfigError(
                    "schedule.sparsity: expected a number in [0, 1) with the unstructured pattern, got null. "
                    "Write for example sparsity: 0.8."
                )
            return self
        if self.allocation is not None:
            raise ConfigError(
                f"allocation: expected null with the pattern {self.pattern.label}, which gives every tensor "
                f"the same share, got '{self.allocation.type}'. Remove the key."
            )
        if any(target is not None and not math.isclose(target, fixed, abs_tol=1e-6) for target in targets):
            raise ConfigError(
                f"schedule: expected the sparsity {fixed:g} that the pattern {self.pattern.label} gives, "
                f"got {[target for target in targets]}. Correct it, or use the pattern type 'unstructured'."
            )
        return self
