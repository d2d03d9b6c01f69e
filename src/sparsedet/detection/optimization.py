"""How a detector is trained: optimizer, learning rate as a pure function of the position in a level, precision."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn import Parameter
from torch.optim import Optimizer

from sparsedet.common.config import ConfigModel


class AdamW(ConfigModel):
    """Adam with decoupled weight decay.

    Attributes:
        lr: peak learning rate.
        weight_decay: decay per step, times the learning rate.
        betas: decay of the two moment estimates.
    """

    type: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """Return torch's AdamW over `parameters`."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)


class SGD(ConfigModel):
    """Stochastic gradient descent with momentum.

    Attributes:
        lr: peak learning rate.
        momentum: share of the last update that is kept.
        weight_decay: L2 penalty added to the gradient.
        nesterov: look ahead along the momentum.
    """

    type: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    nesterov: bool = False

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """Return torch's SGD over `parameters`."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


class LrSchedule(ConfigModel):
    """Base of the learning-rate schedules: a linear warm-up, then a decay that each schedule defines.

    Everything is a share of the level's length, since the schedule starts again at each sparsity level and the
    levels may differ in length.

    Attributes:
        warmup: share of the level that is spent on the warm-up.
        warmup_start: factor on the peak rate at the first step of the warm-up.
    """

    warmup: float = Field(default=0.05, ge=0, lt=1)
    warmup_start: float = Field(default=0.01, ge=0, le=1)

    def factor(self, position: int, length: int) -> float:
        """Return the factor on the peak rate at step `position` (0-based) of a level of `length` steps."""
        num_warmup = int(self.warmup * length)
        if position < num_warmup:
            return self.warmup_start + (1 - self.warmup_start) * position / num_warmup
        return self.decay((position - num_warmup) / (length - num_warmup))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return the factor after the share `progress` in [0, 1) of the steps that follow the warm-up."""


class Constant(LrSchedule):
    """The peak rate throughout, after the warm-up."""

    type: Literal["constant"] = "constant"

    def decay(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(LrSchedule):
    """Half a cosine from the peak rate down to `final` times it (Loshchilov & Hutter, arXiv:1608.03983)."""

    type: Literal["cosine"] = "cosine"
    final: float = Field(default=0.0, ge=0, le=1)

    def decay(self, progress: float) -> float:
        """Return the cosine factor."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class MultiStep(LrSchedule):
    """The rate times `gamma` at each milestone, a share of the steps after the warm-up."""

    type: Literal["multi_step"] = "multi_step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.7, 0.9)
    gamma: float = Field(default=0.1, gt=0, le=1)

    def decay(self, progress: float) -> float:
        """Return gamma to the number of milestones passed."""
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))


OPTIMIZERS = {"adamw": AdamW, "sgd": SGD}
LR_SCHEDULES = {"constant": Constant, "cosine": Cosine, "multi_step": MultiStep}

OptimizerConfig = Annotated[AdamW | SGD, Field(discriminator="type")]
LrScheduleConfig = Annotated[Constant | Cosine | MultiStep, Field(discriminator="type")]


class TrainingConfig(ConfigModel):
    """How long and how a detector is trained.

    Attributes:
        steps: optimizer steps in all; or
        epochs: passes over the training images in all. Exactly one of the two is given.
        batch_size: images per step.
        optimizer: optimizer with its peak learning rate.
        lr_schedule: factor on the peak rate; starts again at each sparsity level.
        precision: number format of the forward pass; losses and box decoding stay in fp32.
        max_gradient_norm: norm to which the gradient of all weights is clipped, null for no clipping.
        num_workers: processes that load images, 0 for none.
        log_every: steps between two lines of metrics.jsonl.
    """

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=1)
    optimizer: OptimizerConfig = AdamW()
    lr_schedule: LrScheduleConfig = Cosine()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    max_gradient_norm: float | None = Field(default=10.0, gt=0)
    num_workers: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(
                f"expected either 'steps' or 'epochs', got {given}. Give one of the two (null unsets the other)."
            )
        return self

    def total_steps(self, num_images: int) -> int:
        """Return the number of optimizer steps for a training set of `num_images`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return int(self.epochs * math.ceil(num_images / self.batch_size))
