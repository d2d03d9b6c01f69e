"""How a detector is trained: length, batches, optimizer, learning rate, average of the weights, precision."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.detection.ema import EmaConfig
from sparsedet.detection.lr_schedules import Cosine, LrScheduleConfig, whole_part


class AdamW(ConfigModel):
    """Adam with decoupled weight decay.

    Attributes:
        lr: peak learning rate; with ``lr_batch_size``, for that many images.
        weight_decay: decay per step, times the learning rate.
        betas: decay of the two moment estimates.
    """

    type: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, parameters: ParamsT) -> Optimizer:
        """Return torch's AdamW over `parameters`, or groups of them."""
        return torch.optim.AdamW(
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=True,  # on the CPU five times as fast where most second moments are zero, as pruned ones are
        )


class SGD(ConfigModel):
    """Stochastic gradient descent with momentum.

    Attributes:
        lr: peak learning rate; with ``lr_batch_size``, for that many images.
        momentum: share of the last update that is kept.
        weight_decay: L2 penalty added to the gradient.
        nesterov: look ahead along the momentum.
    """

    type: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    nesterov: bool = False

    def build(self, parameters: ParamsT) -> Optimizer:
        """Return torch's SGD over `parameters`, or groups of them."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=True,  # twice as fast on the CPU
        )


Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # fmt: skip
"""Names of Accelerate's trackers."""

OPTIMIZERS = {"adamw": AdamW, "sgd": SGD}

OptimizerConfig = Annotated[AdamW | SGD, Field(discriminator="type")]


class CheckpointsConfig(ConfigModel):
    """Checkpoints inside a level, from which the same command goes on; they go when the level is finished.

    Attributes:
        every_minutes: time between two; null: none by time.
        every_steps: optimizer steps between two; null: none by number. SIGTERM and Ctrl-C write one in any case.
        keep: how many are kept, should the newest be damaged.
        keep_best: also keep, in the folder of each level, the checkpoint of the best AP that ``evaluation.every_steps``
            and the end of the level have found in it.
    """

    every_minutes: float | None = Field(default=10.0, gt=0)
    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_best: bool = False

    @property
    def levels_inside(self) -> float:
        """Room for the checkpoints inside a level while it runs, at most, as a multiple of what a level leaves.

        One more is there while it is written; a level leaves one, or two where the best is kept.
        """
        return (self.keep + 1) / (1 + self.keep_best)


class TrainingConfig(ConfigModel):
    """How long and how a detector is trained.

    Attributes:
        steps: optimizer steps in all; or
        epochs: passes over the training images in all. Exactly one of the two is given.
        batch_size: images per optimizer step, in all, however many processes share them.
        forward_batch_size: images that share one forward pass, and with it batch statistics, padding and the
            normalisers of the losses: what one device saw of the batch in the original. A step averages the gradients
            of its passes, which several processes share. Divides `batch_size`; null: all of them, or a process's part.
        optimizer: optimizer with its learning rate.
        lr_batch_size: images the optimizer's rate is meant for; the peak rate is that rate times `batch_size` over it.
            null: the peak rate is the optimizer's.
        freeze: patterns, as in ``sparsity.targets``, of parameters that are not trained; a norm all of whose parameters
            are frozen keeps its running statistics, too.
        lr_multipliers: factor on the learning rate of the parameters that a pattern matches; where several match, the
            product of theirs.
        lr_schedule: learning rate of each step; starts again at each sparsity level.
        ema: average of the weights that is evaluated and saved in their place; null for none.
        precision: number format of the forward pass; losses and box decoding stay in fp32.
        max_gradient_norm: norm to which the gradient of all weights is clipped, null for no clipping.
        num_workers: processes that load images, 0 for none.
        log_every: steps between two lines of metrics.jsonl.
        trackers: where else the metrics go: TensorBoard and other trackers, through Accelerate.
        checkpoints: how often the state is saved inside a level.
    """

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=1)
    forward_batch_size: int | None = Field(default=None, ge=1)
    optimizer: OptimizerConfig = AdamW()
    lr_batch_size: int | None = Field(default=None, ge=1)
    freeze: tuple[str, ...] = ()
    lr_multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    lr_schedule: LrScheduleConfig = Cosine()
    ema: EmaConfig | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    max_gradient_norm: float | None = Field(default=10.0, gt=0)
    num_workers: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)
    trackers: tuple[Tracker, ...] = ()
    checkpoints: CheckpointsConfig = CheckpointsConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(
                f"expected either 'steps' or 'epochs', got {given}. Give one of the two (null unsets the other)."
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch_size % self.images_per_pass:
            raise ValueError(
                f"forward_batch_size: expected a divisor of batch_size {self.batch_size}, got "
                f"{self.forward_batch_size}. Change one of the two."
            )
        if self.lr_schedule.warmup_start == "unscaled" and self.lr_batch_size is None:
            raise ValueError(
                "lr_schedule.warmup_start: expected a factor where lr_batch_size does not scale the rate, got "
                "'unscaled'. Give a factor, or lr_batch_size."
            )
        return self

    @property
    def images_per_pass(self) -> int:
        """Images that share one forward pass."""
        return self.forward_batch_size or self.batch_size

    @property
    def passes_per_step(self) -> int:
        """Forward passes whose gradients a step averages."""
        return self.batch_size // self.images_per_pass

    def shared(self, num_processes: int) -> tuple[int, int]:
        """Return the images of a forward pass, and the passes of a step, where so many processes share a step.

        Each process makes whole passes, so that a run of ``32 = 16 x 2`` images is the same on 1, 2 … 16 processes.
        Where they cannot share the passes evenly, every pass is divided, into no more parts than it takes.

        Raises:
            ConfigError: the images of a pass cannot be divided evenly.
        """
        parts = num_processes // math.gcd(self.passes_per_step, num_processes)
        if self.images_per_pass % parts:
            raise ConfigError(
                f"training.batch_size: expected passes that {num_processes} processes can share evenly, got "
                f"{self.batch_text} images, whose passes do not divide by {parts}. Change batch_size or "
                "forward_batch_size, or start another number of processes."
            )
        return self.images_per_pass // parts, self.passes_per_step * parts

    @property
    def batch_text(self) -> str:
        """Images per step in words, such as ``32 = 16 x 2`` for 16 passes of two images."""
        if self.passes_per_step == 1:
            return str(self.batch_size)
        return f"{self.batch_size} = {self.passes_per_step} x {self.images_per_pass}"

    @property
    def lr_scale(self) -> float:
        """Factor from the optimizer's learning rate to the peak rate."""
        return 1.0 if self.lr_batch_size is None else self.batch_size / self.lr_batch_size

    def lr(self, position: int, num_steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate at step `position` (0-based) of a level of `num_steps`."""
        return self.lr_schedule.lr(position, num_steps, steps_per_epoch, self.optimizer.lr, self.lr_scale)

    def steps_per_epoch(self, num_images: int) -> int:
        """Return the number of optimizer steps in a pass over `num_images`; the last may hold some of the next."""
        return math.ceil(num_images / self.batch_size)

    def total_steps(self, num_images: int) -> int:
        """Return the number of optimizer steps for a training set of `num_images`, the last epoch cut to whole ones."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return whole_part(self.epochs, self.steps_per_epoch(num_images))
