"""The ``sparsity:`` block of a recipe: schedule, allocation, criterion, pattern and targets."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.allocation import Allocation, Lamp
from sparsedet.sparsity.criteria import Criterion, Magnitude
from sparsedet.sparsity.limits import Limits
from sparsedet.sparsity.patterns import Pattern, Unstructured
from sparsedet.sparsity.schedules import Schedule
from sparsedet.sparsity.targets import PREDICTION, Targets


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
        scope: what a target is a share of: ``all`` weights of the model (what is left out is made up for by the
            rest), or the ``chosen`` ones.
        budget: what the targets of the schedule say. ``weights``: the share of zeros; exactly
            ``round(target * weights)`` go, half to even. ``macs``: the share of multiply-accumulates that fall
            away because their weight is zero; the allocation prunes until it is reached, so that it is missed by
            less than the MACs of one weight.
        compensate: whether the rest makes up for weights that are left out. If not (``scope: all`` only), every
            chosen weight gets what the allocation would give it if nothing were left out, and the total falls
            short. For `uniform` that is the target itself, which is what MSBench does (``prun_algo: 0``).
        limits: least, greatest or fixed sparsity of single weights, see `limits`.
        input_shape: shape of one example input, such as (1, 3, 800, 1333), for MACs, stride groups and
            ``preset:prediction``.
    """

    targets: Targets = Targets()
    criterion: Criterion = Magnitude()
    pattern: Pattern = Unstructured()
    schedule: Schedule
    allocation: Allocation | None = Field(default_factory=_default_allocation)
    scope: Literal["all", "chosen"] = "all"
    budget: Literal["weights", "macs"] = "weights"
    compensate: bool = True
    limits: Limits = Field(default_factory=dict)
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        fixed = self.pattern.fixed_sparsity
        targets = self.schedule.target_sparsities
        if fixed is None:
            if self.allocation is None:
                raise ConfigError(
                    f"allocation: expected a rule with the pattern {self.pattern.label}, got null. Write type: lamp."
                )
            if None in targets:
                raise ConfigError(
                    f"schedule.sparsity: expected a number in [0, 1) with the pattern {self.pattern.label}, got null. "
                    "Write for example sparsity: 0.8."
                )
            if not self.compensate and self.scope == "chosen":
                raise ConfigError(
                    "compensate: expected true with scope 'chosen', where nothing is made up for, got false. "
                    "Remove one of the two keys."
                )
            return self
        if self.allocation is not None:
            raise ConfigError(
                f"allocation: expected null with the pattern {self.pattern.label}, which gives every tensor "
                f"the same share, got '{self.allocation.type}'. Remove the key."
            )
        for key, default in (("budget", "weights"), ("compensate", True), ("limits", {})):
            if getattr(self, key) != default:
                raise ConfigError(
                    f"{key}: expected {default!r} with the pattern {self.pattern.label}, which gives every tensor "
                    f"the same share, got {getattr(self, key)!r}. Remove the key."
                )
        if any(target is not None and not math.isclose(target, fixed, abs_tol=1e-6) for target in targets):
            raise ConfigError(
                f"schedule: expected the sparsity {fixed:g} that the pattern {self.pattern.label} gives, "
                f"got {[target for target in targets]}. Correct it, or use the pattern type 'unstructured'."
            )
        return self

    @property
    def needs_profile(self) -> str | None:
        """What needs a forward pass on example inputs; None: nothing."""
        if self.allocation is not None and self.allocation.needs_profile:
            return f"the allocation '{self.allocation.type}'"
        if self.budget == "macs":
            return "the budget 'macs'"
        if self.pattern.kills_channels:
            return f"the pattern '{self.pattern.type}'"
        return f"'{PREDICTION}'" if self.needs_predictions else None

    @property
    def needs_predictions(self) -> bool:
        """Whether the prediction layers must be known: named by a pattern, or spared by whole channels."""
        return self.pattern.kills_channels or PREDICTION in (*self.targets.include, *self.targets.exclude, *self.limits)
