"""Learning-rate schedules: the rate of a step as a pure function of its position in the level."""

import math
from abc import abstractmethod
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsedet.common.config import ConfigModel


class LrSchedule(ConfigModel):
    """Base of the schedules: a warm-up to the peak rate, then a decay that each schedule defines.

    A schedule starts again at each sparsity level. Over the W steps of the warm-up the rate goes from its start to
    its peak, which the last of them has (with W = 1 the only step has the start); a level that is shorter than its
    warm-up ends on the way.

    Attributes:
        warmup: length of the warm-up as a share of the level;
        warmup_steps: in steps;
        warmup_epochs: in epochs. The longest of the three counts.
        warmup_start: factor on the peak rate at the first step of the warm-up; ``unscaled``: it starts at the
            optimizer's rate as it stands there, before ``lr_batch_size`` scales it.
        warmup_shape: whether the rate or its logarithm rises linearly.

    Source: United-Perception's schedulers, whose warm-up this is.
    """

    warmup: float = Field(default=0.05, ge=0, lt=1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_start: Annotated[float, Field(ge=0, le=1)] | Literal["unscaled"] = 0.01
    warmup_shape: Literal["linear", "exponential"] = "linear"

    @model_validator(mode="after")
    def _has_a_logarithm(self) -> Self:
        if self.warmup_shape == "exponential" and self.warmup_start == 0:
            raise ValueError(
                "warmup_start: expected a factor above 0 for an exponential warm-up, got 0. Raise it, or use "
                "warmup_shape: linear."
            )
        return self

    def lr(self, position: int, num_steps: int, steps_per_epoch: int, base_lr: float, scale: float = 1.0) -> float:
        """Return the learning rate of a step.

        Args:
            position: of the step in its level, 0-based.
            num_steps: steps in the level.
            steps_per_epoch: steps in a pass over the training images.
            base_lr: the optimizer's rate as it stands in the recipe.
            scale: factor from it to the peak rate.
        """
        peak = base_lr * scale
        num_warmup = self.num_warmup_steps(num_steps, steps_per_epoch)
        if position >= num_warmup:
            return self._decayed(peak, position, num_warmup, num_steps, steps_per_epoch)
        start = base_lr if isinstance(self.warmup_start, str) else peak * self.warmup_start
        progress = position / max(1, num_warmup - 1)
        if self.warmup_shape == "exponential":
            return float(start * (peak / start) ** progress)
        return start + (peak - start) * progress

    def num_warmup_steps(self, num_steps: int, steps_per_epoch: int) -> int:
        """Return the length of the warm-up in a level of `num_steps`, which may be more than these."""
        in_level, in_epochs = whole_part(self.warmup, num_steps), whole_part(self.warmup_epochs, steps_per_epoch)
        return max(in_level, in_epochs, self.warmup_steps)

    @abstractmethod
    def _decayed(self, peak: float, position: int, num_warmup: int, num_steps: int, steps_per_epoch: int) -> float:
        """Return the rate at a `position` behind the warm-up; the other arguments are as in `lr`."""


class Constant(LrSchedule):
    """The peak rate throughout, after the warm-up."""

    type: Literal["constant"] = "constant"

    def _decayed(self, peak: float, position: int, num_warmup: int, num_steps: int, steps_per_epoch: int) -> float:
        return peak


class Cosine(LrSchedule):
    """Half a cosine from the peak rate down to a final one (Loshchilov & Hutter, arXiv:1608.03983).

    Attributes:
        epochs: epochs from the level's start to the end of the cosine, behind which the rate stays final; null: it
            ends with the level.
        final: factor on the peak rate at the end.
        final_lr: rate at the end, in the place of `final`.
        up_compat: the cosine counts from the level's start, as in United-Perception, whose rate therefore drops where
            the warm-up ends, and rises again behind `epochs`; otherwise it counts from the end of the warm-up.
    """

    type: Literal["cosine"] = "cosine"
    epochs: float | None = Field(default=None, gt=0)
    final: float = Field(default=0.0, ge=0, le=1)
    final_lr: float | None = Field(default=None, ge=0)
    up_compat: bool = False

    @model_validator(mode="after")
    def _one_final(self) -> Self:
        if self.final_lr is not None and self.final != 0:
            raise ValueError(
                f"expected either 'final' or 'final_lr', got {self.final} and {self.final_lr}. Give one of the two."
            )
        return self

    def _decayed(self, peak: float, position: int, num_warmup: int, num_steps: int, steps_per_epoch: int) -> float:
        final = peak * self.final if self.final_lr is None else self.final_lr
        end = num_steps if self.epochs is None else self.epochs * steps_per_epoch
        if self.up_compat:
            progress = position / end
        else:
            progress = (position - num_warmup) / (end - num_warmup) if position < end else 1.0
        return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


class MultiStep(LrSchedule):
    """The peak rate times `gamma` for each milestone that is passed.

    Attributes:
        milestones: counted from the level's start, in `unit`.
        unit: ``level`` for shares of the level, in (0, 1); ``epoch`` for epochs.
        gamma: factor at each milestone.
    """

    type: Literal["multi_step"] = "multi_step"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = (0.7, 0.9)
    unit: Literal["level", "epoch"] = "level"
    gamma: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        if self.unit == "level" and max(self.milestones, default=0) >= 1:
            raise ValueError(
                f"milestones: expected shares of the level in (0, 1), got {list(self.milestones)}. "
                "Correct them, or count in epochs with unit: epoch."
            )
        return self

    def _decayed(self, peak: float, position: int, num_warmup: int, num_steps: int, steps_per_epoch: int) -> float:
        progress = position / (num_steps if self.unit == "level" else steps_per_epoch)
        return float(peak * self.gamma ** sum(progress >= milestone for milestone in self.milestones))


LR_SCHEDULES = {"constant": Constant, "cosine": Cosine, "multi_step": MultiStep}

LrScheduleConfig = Annotated[Constant | Cosine | MultiStep, Field(discriminator="type")]


def whole_part(share: float, number: int) -> int:
    """Return the whole part of `share` times `number`, of the decimal that is written: 2.3 times 100 is 230."""
    return int(Fraction(str(share)) * number)
