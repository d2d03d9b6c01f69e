"""The training loop: short, and the same for dense and sparse detectors."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError, SparseDetError
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.models import Detector
from sparsedet.detection.optimization import TrainingConfig

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(SparseDetError):
    """Training cannot go on, for example because the loss is not finite."""


class Callback(Protocol):
    """What may act on a training run from outside, such as a sparsifier."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Act before the forward pass of `step` (0-based)."""

    def before_evaluate(self) -> None:
        """Act before the weights are read: evaluated or saved."""


@dataclass(frozen=True)
class StepReport:
    """What one training step was.

    Attributes:
        step: 0-based index of the step.
        total_steps: steps of the whole run.
        loss: total loss.
        terms: its parts by name.
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
    """A run of steps with its own learning-rate schedule: the whole run, or one sparsity level of it."""

    first_step: int
    last_step: int

    @property
    def num_steps(self) -> int:
        """Steps in the level."""
        return self.last_step - self.first_step


class Trainer:
    """Trains a detector level by level.

    Args:
        model: detector to train; moved to `device`.
        config: length, optimizer, precision.
        total_steps: steps of the whole run, for schedules and reports.
        device: where the model is.
        callback: acts before each step and before the weights are read.
        report: called with the `StepReport` of each step.
    """

    def __init__(
        self,
        model: Detector,
        config: TrainingConfig,
        total_steps: int,
        device: torch.device,
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
        self.total_steps = total_steps
        self.device = device
        self.callback = callback
        self.report = report
        self.optimizer = config.optimizer.build(p for p in model.parameters() if p.requires_grad)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def train(self, level: Level, batches: Iterable[Batch]) -> float | None:
        """Run the steps of `level`, one for each batch; return the mean loss of its last steps (at most 50).

        Raises:
            TrainingError: the loss is not finite; the message names step, rate, terms and images.
        """
        self.model.train()
        recent: deque[float] = deque(maxlen=50)
        times: deque[float] = deque([time.perf_counter()], maxlen=21)
        for step, batch in enumerate(batches, level.first_step):
            lr = self.config.optimizer.lr * self.config.lr_schedule.factor(step - level.first_step, level.num_steps)
            terms, norm = self._step(step, batch, lr)
            loss = sum(terms.values())
            recent.append(loss)
            times.append(time.perf_counter())
            rate = self.config.batch_size * (len(times) - 1) / (times[-1] - times[0])
            self.report(StepReport(step, self.total_steps, loss, terms, lr, norm, self.config.batch_size, rate))
        return sum(recent) / len(recent) if recent else None

    def _step(self, step: int, batch: Batch, lr: float) -> tuple[dict[str, float], float | None]:
        if self.callback is not None:
            self.callback.before_step(step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = batch.to(self.device)
        losses = self._losses(batch)
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        if not all(abs(value) < float("inf") for value in values):
            raise TrainingError(
                f"training: expected a finite loss, got {terms} at step {step} with learning rate {lr:.3g} on the "
                f"images {list(batch.image_ids)}. Lower the learning rate, use precision fp32, or look at these images."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]  # torch's own
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return terms, norm

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
        """Return the state of optimizer and scaler (tensors and plain data)."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
