"""Exponential moving average of a detector's weights, evaluated and saved in their place."""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.detector import Detector


class EmaConfig(ConfigModel):
    """How fast the average follows the weights: ``average = d * average + (1 - d) * weights`` after each step.

    Attributes:
        decay: d in the long run.
        ramp: how d rises towards it over the t-th updates (t = 0, 1, …), so that the first weights are soon
            forgotten: ``linear``: ``min(decay, (1 + t) / (ramp_steps + t))``; ``exponential``:
            ``decay * (1 - exp(-t / ramp_steps))``.
        ramp_steps: how slowly.

    Source: United-Perception's EMA (its exponential one has 2000 for `ramp_steps`).
    """

    decay: float = Field(default=0.999, ge=0, lt=1)
    ramp: Literal["linear", "exponential"] = "exponential"
    ramp_steps: int = Field(default=2000, ge=1)

    def decay_at(self, update: int) -> float:
        """Return d of the `update`-th update (0-based)."""
        if self.ramp == "linear":
            return min(self.decay, (1 + update) / (self.ramp_steps + update))
        return self.decay * (1 - math.exp(-update / self.ramp_steps))


class WeightAverage:
    """A copy of a detector that holds the average of its weights and running statistics.

    Args:
        model: detector in training; the average begins with its weights.
        config: how fast the average follows.
    """

    def __init__(self, model: Detector, config: EmaConfig) -> None:
        self.config = config
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._average.n_averaged.fill_(1)  # at 0 the first update would copy the weights, whatever the decay

    @property
    def model(self) -> Detector:
        """The averaged detector; its parameters have the names of the original's."""
        return cast(Detector, self._average.module)

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return int(self._average.n_averaged) - 1

    @num_updates.setter
    def num_updates(self, number: int) -> None:
        self._average.n_averaged.fill_(number + 1)

    def update(self, model: Detector) -> None:
        """Follow the weights of `model` by one step."""
        self._average.update_parameters(model)

    @torch.no_grad()
    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], _: object) -> None:
        decay = self.config.decay_at(self.num_updates)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - decay)
            else:  # the number of batches that a norm has seen
                average.copy_(weight)
