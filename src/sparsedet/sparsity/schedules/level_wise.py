"""Level-wise schedule: train a while at each of several rising sparsities."""

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.schedules.schedule import BaseSchedule


class LevelWise(BaseSchedule):
    """Share the steps of a run among rising sparsity levels; new masks are made where a level starts.

    Attributes:
        levels: target sparsity of each level, in [0, 1), rising.
        shares: relative length of each level; None: equal lengths. ``(1, 1, 2)`` gives the last level half of
            the steps. Later levels profit from more.
        up_compat: every level but the first begins one step late, and its learning-rate schedule at position 1, as
            in United-Perception, where masks and rate change after the update of the step that begins the level.

    Source: MSBench's AmbaLevelPruneScheduler (equal lengths); Han et al. 2015 (arXiv:1506.02626) for the
    idea.
    """

    type: Literal["level_wise"] = "level_wise"
    levels: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)]
    shares: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    up_compat: bool = False

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)):
            raise ConfigError(f"expected levels that rise, got {list(levels)}. Sort them, each once.")
        return levels

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.shares is not None and len(self.shares) != len(self.levels):
            raise ConfigError(
                f"shares: expected one share for each of {len(self.levels)} levels, got {len(self.shares)}. "
                "Add or remove shares, or leave the key out."
            )
        return self

    @property
    def target_sparsities(self) -> tuple[float | None, ...]:
        """Target of each level."""
        return self.levels

    def boundaries(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step of each level; it makes the level's masks.

        Raises:
            ConfigError: there are too few steps to give every level at least one.
        """
        starts = tuple(start + (self.up_compat and start > 0) for start in self.restarts(total_steps))
        if len(set(starts)) < len(starts) or starts[-1] >= total_steps:
            raise ConfigError(
                f"total_steps: expected at least one step for each of the {len(starts)} levels, "
                f"got {total_steps} steps. Train longer, or use fewer levels."
            )
        return starts

    def restarts(self, total_steps: int) -> tuple[int, ...]:
        """Return the step from which the learning-rate schedule of each level counts.

        Of L equal levels these are ``int(level * total_steps / L)``.
        """
        shares = [Fraction(str(share)) for share in self.shares or (1,) * len(self.levels)]
        return tuple(int(total_steps * sum(shares[:level]) / sum(shares)) for level in range(len(shares)))
