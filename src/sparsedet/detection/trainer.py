"""The training loop: short, and the same for dense and sparse detectors."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError, SparseDetError
from sparsedet.common.runtime import mix
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.ema import WeightAverage
from sparsedet.detection.models import Detector
from sparsedet.detection.optimization import TrainingConfig

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(SparseDetError):
    """Training cannot go on, for example because the loss is not finite."""


class Callback(Protocol):
    """What may act on a training run from outside, such as a sparsifier."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Act before the forward pass of `step` (0-based)."""

    def before_evaluate(self, model: nn.Module) -> None:
        """Act before the weights of `model`, the trained one or the average of its weights, are evaluated or saved."""


@dataclass(frozen=True)
class StepReport:
    """What one training step was.

    Attributes:
        step: 0-based index of the step.
        total_steps: steps of the whole run.
        loss: total loss.
        terms: its parts by name; like the loss, means over the forward passes of the step.
        lr: learning rate of the step.
        gradient_norm: norm of the gradient before clipping, None where nothing is clipped.
        batch_size: images per step.
        images_per_second: mean over the last steps, loading included.
    """

    step: int
    total_steps: int
    loss: float
    terms: dict[str, float]
    lr: float
    gradient_norm: float | None
    batch_size: int
    images_per_second: float


@dataclass(frozen=True)
class Level:
    """A run of steps with its own learning-rate schedule: the whole run, or one sparsity level of it.

    Attributes:
        first_step: its first step.
        last_step: the step behind its last.
        lr_steps: the steps its learning-rate schedule counts; None: its own.
    """

    first_step: int
    last_step: int
    lr_steps: range | None = None

    @property
    def num_steps(self) -> int:
        """Steps in the level."""
        return self.last_step - self.first_step

    @property
    def steps(self) -> range:
        """Its steps."""
        return range(self.first_step, self.last_step)

    def lr(self, step: int, config: TrainingConfig, steps_per_epoch: int) -> float:
        """Return the learning rate of a step of the level."""
        counted = self.lr_steps or self.steps
        return config.lr(step - counted.start, len(counted), steps_per_epoch)


class Trainer:
    """Trains a detector level by level.

    A step depends on the seed, its index and the state only: an interruption changes no bit.

    Args:
        model: detector to train; moved to `device`.
        config: length, batches, optimizer, learning rate, average, precision.
        num_images: images that are trained on, for the length of an epoch and of the run.
        device: where the model is.
        seed: of what losses draw at random, such as samples of anchors.
        callback: acts before each step and before the weights are read.
        report: called with the `StepReport` of each step.

    Attributes:
        total_steps: steps of the whole run.
        average: of the weights; None where the configuration asks for none.
    """

    def __init__(
        self,
        model: Detector,
        config: TrainingConfig,
        num_images: int,
        device: torch.device,
        seed: int = 0,
        callback: Callback | None = None,
        report: Callable[[StepReport], None] = lambda _: None,
    ) -> None:
        if config.precision == "fp16" and device.type == "cpu":
            raise ConfigError(
                "training.precision: expected 'fp32' or 'bf16' on the CPU, got 'fp16'. "
                "Use bf16, or a GPU with --device cuda."
            )
        self.model = model.to(device)
        self.model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs
        self.config = config
        self.total_steps = config.total_steps(num_images)
        self.steps_per_epoch = config.steps_per_epoch(num_images)
        self.device = device
        self.seed = seed
        self.callback = callback
        self.report = report
        self.optimizer = config.optimizer.build(p for p in model.parameters() if p.requires_grad)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)

    @property
    def evaluated_model(self) -> Detector:
        """What is evaluated and saved: the average of the weights where there is one, otherwise the trained model."""
        return self.model if self.average is None else self.average.model

    def restart_average(self) -> None:
        """Let the average of the weights, if there is one, begin again from the weights as they are."""
        if self.average is not None:
            self.average.model.load_state_dict(self.model.state_dict())

    def train(self, level: Level, batches: Iterable[Batch]) -> float | None:
        """Run the steps of `level`; return the mean loss of its last steps (at most 50).

        Args:
            level: which steps.
            batches: for each step one for each of its forward passes.

        Raises:
            TrainingError: the loss is not finite; the message names step, rate, terms and images.
        """
        self.model.train()
        batches = iter(batches)
        recent: deque[float] = deque(maxlen=50)
        times: deque[float] = deque([time.perf_counter()], maxlen=21)
        for step in level.steps:
            lr = self.lr(step, level)
            terms, norm = self._step(step, batches, lr)
            loss = sum(terms.values())
            recent.append(loss)
            times.append(time.perf_counter())
            rate = self.config.batch_size * (len(times) - 1) / (times[-1] - times[0])
            self.report(StepReport(step, self.total_steps, loss, terms, lr, norm, self.config.batch_size, rate))
        return sum(recent) / len(recent) if recent else None

    def lr(self, step: int, level: Level) -> float:
        """Return the learning rate of a step of `level`."""
        return level.lr(step, self.config, self.steps_per_epoch)

    def _step(self, step: int, batches: Iterator[Batch], lr: float) -> tuple[dict[str, float], float | None]:
        if self.callback is not None:
            self.callback.before_step(step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(mix(self.seed, step))
        passes = [self._pass(step, next(batches), lr) for _ in range(self.config.passes_per_step)]
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        return {name: sum(terms[name] for terms in passes) / len(passes) for name in passes[0]}, norm

    def _pass(self, step: int, batch: Batch, lr: float) -> dict[str, float]:
        """Add the gradient of a forward pass, as a share of the step's, to the parameters; return the loss terms."""
        losses = self._losses(batch.to(self.device))
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        if not all(abs(value) < float("inf") for value in values):
            raise TrainingError(
                f"training: expected a finite loss, got {terms} at step {step} with learning rate {lr:.3g} on the "
                f"images {list(batch.image_ids)}. Lower the learning rate, use precision fp32, or look at these images."
            )
        loss = torch.stack(list(losses.values())).sum() / self.config.passes_per_step
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's own
        return terms

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        dtype = AUTOCAST_DTYPES.get(self.config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            outputs = self.model(batch.images.contiguous(memory_format=torch.channels_last))
        return self.model.losses(outputs, batch.targets)

    def _clip(self) -> float | None:
        if self.config.max_gradient_norm is None:
            return None
        self.scaler.unscale_(self.optimizer)
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm))

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed, beside the weights of `evaluated_model`, to go on (tensors and plain data)."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.average is not None:
            state |= {"model": self.model.state_dict(), "num_updates": self.average.num_updates}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the weights of `evaluated_model` are loaded apart."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.model.load_state_dict(state["model"])
            self.average.num_updates = state["num_updates"]
