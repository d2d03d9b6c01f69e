"""The ``sparsity:`` block of a recipe: schedule, allocation, criterion, pattern and targets."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.allocation import Allocation, Lamp
from sparsedet.sparsity.criteria import Criterion, Magnitude
from sparsedet.sparsity.limits import Limits
from sparsedet.sparsity.patterns import NM, Pattern, Unstructured
from sparsedet.sparsity.schedules import MaskUpdate, Schedule
from sparsedet.sparsity.targets import PREDICTION, Targets

ZEROS_ANYWHERE = ("unstructured", "n_m", "n_m_2d")
"""Patterns that hold with more zeros than they ask for, wherever these stand."""


def _default_allocation(values: dict[str, Any]) -> Lamp | None:
    pattern = values.get("pattern")
    return Lamp() if pattern is None or pattern.fixed_sparsity is None else None


def _default_update(values: dict[str, Any]) -> MaskUpdate:
    schedule = values.get("schedule")
    return "once" if schedule is None else schedule.mask_update


def _default_interval(values: dict[str, Any]) -> int | None:
    return 100 if values.get("mask_update") == "every_k_steps" else None


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
            short. For `uniform` that is the target itself, unstructured ``ceil(target * n)`` of its n entries, which is
            what MSBench does (``prun_algo: 0``).
        limits: least, greatest or fixed sparsity of single weights, see `limits`.
        mask_update: when masks are made anew: ``once``, when the only level begins; ``per_level``, when each does; or
            ``every_k_steps`` within levels too, for schedules that do so by themselves, and for all with
            `keep_pruned_values`. Default: as the schedule does.
        update_interval: the k of ``every_k_steps``; default 100, null otherwise.
        keep_pruned_values: soft masks. The value that a weight had when it was pruned is kept aside; new masks are
            chosen by these values, and a weight that comes back has its own. See `Sparsifier.attach`.
        keep_zeros: begin with masks of the zeros that the chosen weights hold already, to go on from a sparse
            checkpoint; see `Sparsifier.masks_from_zeros_`.
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
    mask_update: MaskUpdate = Field(default_factory=_default_update)
    update_interval: Annotated[int, Field(ge=1)] | None = Field(default_factory=_default_interval)
    keep_pruned_values: bool = False
    keep_zeros: bool = False
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

    @model_validator(mode="after")
    def _check_updates(self) -> Self:
        schedule, num_levels = self.schedule, len(self.schedule.target_sparsities)
        is_every = self.mask_update == "every_k_steps"
        if schedule.changes_within_levels and not is_every:
            raise ConfigError(
                f"mask_update: expected 'every_k_steps' with the schedule '{schedule.type}', which changes masks in "
                f"its level, got '{self.mask_update}'. Remove the key."
            )
        if self.mask_update == "once" and num_levels > 1:
            raise ConfigError(
                f"mask_update: expected 'per_level' with {num_levels} levels, got 'once'. Use the schedule one_shot."
            )
        if is_every and not schedule.changes_within_levels and not self.keep_pruned_values:
            raise ConfigError(
                "mask_update: expected 'once' or 'per_level' where pruned weights stay zero, since a new mask would be "
                "the old one, got 'every_k_steps'. Set keep_pruned_values: true, or use the schedule dynamic."
            )
        if is_every != (self.update_interval is not None):
            raise ConfigError(
                f"update_interval: expected a number of steps with mask_update 'every_k_steps', otherwise null, got "
                f"{self.update_interval} with '{self.mask_update}'. Correct one of the two keys."
            )
        if self.keep_pruned_values and not is_every and num_levels == 1:
            raise ConfigError(
                "keep_pruned_values: expected false where masks are made once, since nothing reads the values, got "
                "true. Set mask_update: every_k_steps."
            )
        return self

    @model_validator(mode="after")
    def _check_patterns(self) -> Self:
        schedule, pattern = self.schedule, self.pattern
        if schedule.changes_within_levels and pattern.fixed_sparsity is not None:
            raise ConfigError(
                f"schedule: expected one_shot or level_wise with the pattern {pattern.label}, which leaves no other "
                f"sparsity and no place to grow, got '{schedule.type}'. Change one of the two."
            )
        if (schedule.grows or self.keep_pruned_values) and pattern.kills_channels:
            key = "schedule" if schedule.grows else "keep_pruned_values"
            raise ConfigError(
                f"{key}: expected pruned weights that stay so with the pattern {pattern.label}, since what follows a "
                "dead channel is zeroed with it, got weights that come back. Use another pattern or schedule."
            )
        if self.keep_pruned_values and (schedule.grows or self.keep_zeros):
            raise ConfigError(
                "keep_pruned_values: expected false with keep_zeros and with the schedule dynamic, whose weights come "
                "back as zero, got true. Remove one of the keys."
            )
        if self.keep_pruned_values and self.criterion.updates_weights:
            raise ConfigError(
                f"keep_pruned_values: expected false with the criterion '{self.criterion.type}', which changes the "
                "weights that stay, got true. Remove one of the keys."
            )
        if self.keep_zeros and pattern.type not in ZEROS_ANYWHERE:
            raise ConfigError(
                f"keep_zeros: expected false with the pattern {pattern.label}, whose zeros come in larger units, got "
                "true. Use the pattern unstructured or N:M."
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
        if isinstance(self.pattern, NM) and self.pattern.permute:
            return "pattern.permute"
        return f"'{PREDICTION}'" if self.needs_predictions else None

    @property
    def needs_predictions(self) -> bool:
        """Whether the prediction layers must be known: named by a pattern, or spared by whole channels."""
        return self.pattern.kills_channels or PREDICTION in (*self.targets.include, *self.targets.exclude, *self.limits)
