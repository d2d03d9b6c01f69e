"""One-shot schedule: prune once, before the first step, then train."""

from typing import Annotated, Literal

from pydantic import Field

from sparsedet.sparsity.schedules.schedule import BaseSchedule


class OneShot(BaseSchedule):
    """Prune once to the final sparsity and spend all steps there.

    Attributes:
        sparsity: target in [0, 1); None only with a pattern that fixes it, such as 2:4.
    """

    type: Literal["one_shot"] = "one_shot"
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None

    @property
    def target_sparsities(self) -> tuple[float | None, ...]:
        """Target of the only level."""
        return (self.sparsity,)
