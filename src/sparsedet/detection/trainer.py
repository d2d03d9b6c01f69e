"""The training loop: short, and the same for dense and sparse detectors."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsedet.common.errors import ConfigError
from sparsedet.common.processes import broadcast_, mean_over_processes, num_processes, rank
from sparsedet.common.runtime import mix, peak_memory_bytes
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.loader import Batch, train_loader
from sparsedet.detection.ema import WeightAverage
from sparsedet.detection.guard import Guard
from sparsedet.detection.models import Detector
from sparsedet.detection.optimization import TrainingConfig
from sparsedet.detection.parameters import by_factor, train_

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        gradient_norm: norm of the gradient before clipping; None where it is not finite and the loss scaler therefore
            skipped the step.
        batch_size: images per step.
        last_step: the step behind the last of the level.
        images_per_second: mean over the last steps, loading included; pruning, evaluations and checkpoints are not.
        data_wait_share: share of that time in which the loop waited for images.
        peak_memory_bytes: of the GPU or, on the CPU, of the process; None where it is not known.
    """

    step: int
    total_steps: int
    loss: float
    terms: dict[str, float]
    lr: float
    gradient_norm: float | None
    batch_size: int
    last_step: int
    images_per_second: float
    data_wait_share: float
    peak_memory_bytes: int | None

    @property
    def seconds_left(self) -> float:
        """Time that the steps of the run still take at that rate; what lies between the steps comes on top."""
        return (self.total_steps - self.step - 1) * self.batch_size / self.images_per_second

    @property
    def seconds_left_in_level(self) -> float:
        """Likewise for those of the level."""
        return (self.last_step - self.step - 1) * self.batch_size / self.images_per_second


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

    A step depends on the seed, its index and the state only: an interruption changes no bit. Of several processes
    each makes its share of the forward passes of a step; after it all of them hold the same weights, running
    statistics (those of the first process, where each has its own), averages and optimizer state.

    Args:
        model: detector to train; moved to `device`.
        config: length, batches, optimizer, learning rate, average, precision.
        num_images: images that are trained on, for the length of an epoch and of the run.
        device: where the model is.
        seed: of what losses draw at random, such as samples of anchors.
        callback: acts before each step and before the weights are read.
        report: called with the `StepReport` of each step.
        lr_factors: factor on the learning rate of parameters by their names; of all others it is 1.

    Attributes:
        total_steps: steps of the whole run.
        images_per_pass: images of each forward pass.
        passes_per_step: forward passes of a step, in all processes.
        average: of the weights; None where the configuration asks for none.
        recent_losses: of the last steps of the level that is trained, at most 50.
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
        lr_factors: Mapping[str, float] = MappingProxyType({}),
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
        groups = by_factor(model, lr_factors)
        self._group_factors = tuple(groups)
        self.optimizer = config.optimizer.build([{"params": parameters} for parameters in groups.values()])
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.guard = Guard(self.model, self.scaler.is_enabled())
        self.images_per_pass, self.passes_per_step = config.shared(num_processes())
        self._losses: nn.Module = _Losses(self.model, device.type, AUTOCAST_DTYPES.get(config.precision))
        if num_processes() > 1:
            self._losses = _distributed(self._losses)
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)
        self.recent_losses: deque[float] = deque(maxlen=50)

    @property
    def evaluated_model(self) -> Detector:
        """What is evaluated and saved: the average of the weights where there is one, otherwise the trained model."""
        return self.model if self.average is None else self.average.model

    def restart_average(self) -> None:
        """Let the average of the weights, if there is one, begin again from the weights as they are."""
        if self.average is not None:
            self.average.model.load_state_dict(self.model.state_dict())

    def batches(self, dataset: DetectionDataset, steps: range) -> Iterator[Batch]:
        """Yield what this process trains on in `steps`: the batch of each of its forward passes."""
        stride, num_workers = self.model.stride, self.config.num_workers
        share = slice(rank(), None, num_processes())
        return train_loader(dataset, self.images_per_pass, steps, stride, self.passes_per_step, num_workers, share)

    def train(self, level: Level, batches: Iterable[Batch], first_step: int | None = None) -> float | None:
        """Run the steps of `level`; return the mean loss of its last steps (at most 50).

        Args:
            level: which steps.
            batches: for each step one for each of the forward passes that this process makes.
            first_step: where to go on inside the level; None: from its beginning.

        Raises:
            TrainingError: loss or gradient is not finite; the message names step, rate, terms and images.
        """
        train_(self.model)
        if first_step is None:
            self.recent_losses.clear()
        clock = _Clock(batches)
        for step in range(level.first_step if first_step is None else first_step, level.last_step):
            lr = self.lr(step, level)
            if self.callback is not None:
                self.callback.before_step(step, self.total_steps)
            with clock.step():
                terms, norm = self._step(step, clock.next_batch, lr)
            loss = sum(terms.values())
            self.recent_losses.append(loss)
            self.report(
                StepReport(
                    step,
                    self.total_steps,
                    loss,
                    terms,
                    lr,
                    norm,
                    self.config.batch_size,
                    level.last_step,
                    self.config.batch_size * clock.rate,
                    clock.wait_share,
                    peak_memory_bytes(self.device),
                )
            )
        return sum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else None

    def lr(self, step: int, level: Level) -> float:
        """Return the learning rate of a step of `level`."""
        return level.lr(step, self.config, self.steps_per_epoch)

    def _step(self, step: int, next_batch: Callable[[], Batch], lr: float) -> tuple[dict[str, float], float | None]:
        for group, factor in zip(self.optimizer.param_groups, self._group_factors, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        passes: list[dict[str, float]] = []
        image_ids: list[int] = []
        for number in range(rank(), self.passes_per_step, num_processes()):
            batch = next_batch()
            image_ids += batch.image_ids
            passes.append(self._pass(step, number, batch, lr))
        norm = self._gradient_norm()
        context = f"with the loss {passes[-1]} {_where(step, lr, image_ids)}"
        is_finite = self.guard.check_gradient(norm, context)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._share_statistics()
        if self.average is not None:
            self.average.update(self.model)
        means = [sum(terms[name] for terms in passes) / len(passes) for name in passes[0]]
        return dict(zip(passes[0], mean_over_processes(means), strict=True)), norm if is_finite else None

    def _pass(self, step: int, number: int, batch: Batch, lr: float) -> dict[str, float]:
        """Add the gradient of a forward pass, as a share of the step's, to the parameters; return the loss terms.

        With the last pass of a process go the gradients of the others' passes.
        """
        torch.manual_seed(mix(self.seed, step, number) if number else mix(self.seed, step))
        is_last = number + num_processes() >= self.passes_per_step
        with nullcontext() if is_last or num_processes() == 1 else self._losses.no_sync():  # type: ignore[operator]
            return self._backward(step, batch, lr)

    def _backward(self, step: int, batch: Batch, lr: float) -> dict[str, float]:
        losses: dict[str, Tensor] = self._losses(batch.to(self.device))
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        self.guard.check_loss(terms, _where(step, lr, batch.image_ids))
        loss = torch.stack(list(losses.values())).sum() / (self.passes_per_step // num_processes())
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's own
        return terms

    def _share_statistics(self) -> None:
        """Take over the running statistics of the first process; processes whose norms are their own differ in them."""
        if num_processes() > 1:
            norms = [norm for norm in self.model.modules() if isinstance(norm, _BatchNorm) and norm.training]
            broadcast_([buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.ndim == 1])

    def _gradient_norm(self) -> float:
        """Return the norm of the whole gradient, which is clipped afterwards where the configuration asks for it."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([one.grad for one in self.model.parameters() if one.grad is not None])
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_gradient_norm, norm)
        return float(norm)

    def check_state(self, step: int) -> None:
        """Raise TrainingError where weights, statistics or their average are not finite before `step`."""
        self.guard.check_state(step, *dict.fromkeys((self.model, self.evaluated_model)))

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed, beside the weights of `evaluated_model`, to go on (tensors and plain data)."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "recent_losses": list(self.recent_losses),
        }
        if self.average is not None:
            state |= {"model": self.model.state_dict(), "num_updates": self.average.num_updates}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the weights of `evaluated_model` are loaded apart."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.recent_losses = deque(state.get("recent_losses", ()), maxlen=50)
        if self.average is not None:
            self.model.load_state_dict(state["model"])
            self.average.num_updates = state["num_updates"]


def _where(step: int, lr: float, image_ids: Iterable[int]) -> str:
    return f"at step {step} with learning rate {lr:.3g} on the images {list(image_ids)}"


class _Clock:
    """Time of the last steps, at most 20, and how much of it was spent in waiting for batches.

    Args:
        batches: what is waited for.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self._times: deque[tuple[float, float]] = deque(maxlen=20)
        self._waited = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Take the time of what is done inside."""
        self._waited, began = 0.0, time.perf_counter()
        yield
        self._times.append((time.perf_counter() - began, self._waited))

    def next_batch(self) -> Batch:
        """Return the next batch and take the time until it is there."""
        began = time.perf_counter()
        batch = next(self._batches)
        self._waited += time.perf_counter() - began
        return batch

    @property
    def rate(self) -> float:
        """Steps in a second."""
        return len(self._times) / max(sum(seconds for seconds, _ in self._times), 1e-9)

    @property
    def wait_share(self) -> float:
        """Share of the time that was spent in waiting."""
        return sum(waited for _, waited in self._times) / max(sum(seconds for seconds, _ in self._times), 1e-9)


class _Losses(nn.Module):
    """Forward pass and losses in one, which is what DDP has to see to know which weights get a gradient."""

    def __init__(self, model: Detector, device_type: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.device_type = device_type
        self.dtype = dtype

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            outputs = self.model(batch.images.contiguous(memory_format=torch.channels_last))
        losses: dict[str, Tensor] = self.model.losses(outputs, batch.targets)
        return losses


def _distributed(losses: nn.Module) -> nn.Module:
    """Return `losses` with gradients that are the mean over all processes.

    Unused parameters are looked for, since the head of a process without boxes may get no gradient. DDP then also
    keeps the order in which it adds gradients up, which it would else change after the first step: after a resume the
    last bits would differ.
    """
    return _Distributed(losses, find_unused_parameters=True)


class _Distributed(nn.parallel.DistributedDataParallel):
    """DDP that lets synchronised norms run on CPUs: torch's own cannot, ours can."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        if self.device_type != "cpu":
            super()._passing_sync_batchnorm_handle(module)  # type: ignore[no-untyped-call]  # torch's own
