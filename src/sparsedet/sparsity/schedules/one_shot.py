"""One-shot schedule: prune once, before the first step, then train."""

from typing import Annotated, Literal

from pydantic import Field

from sparsedet.common.config import ConfigModel


class OneShot(ConfigModel):
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

    def boundaries(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step of the only level, 0."""
        return (0,)

    def restarts(self, total_steps: int) -> tuple[int, ...]:
        """Return the step from which the learning-rate schedule of the only level counts, 0."""
        return (0,)
