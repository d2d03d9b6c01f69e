"""Calibration: the data that some criteria look at, and passes over it that leave the model as it was."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError, SparseDetError
from sparsedet.common.processes import num_processes
from sparsedet.sparsity.distributed import is_sharded, sum_over_processes_
from sparsedet.sparsity.weights import Weight


@dataclass(frozen=True)
class Calibration:
    """Data for criteria that need it. It is looked at whenever masks are made, so that each level has fresh statistics.

    Both functions get the plain model, without wrappers of DDP or torch.compile. In a distributed run every process
    gives batches of its own; statistics are taken over all of them, so that masks are the same everywhere.

    Attributes:
        batches: what can be gone through again and again, such as a list or a data loader.
        run: runs the model, in eval mode, on a batch; what it returns does not matter.
        loss: returns the loss of a batch, a scalar, for the criterion `gradient`. Containers are in training mode,
            since some models have losses in it only; layers (norms, dropout) are in eval mode.

    Example:
        >>> data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
        >>> calibration = Calibration(
        ...     batches=data,
        ...     run=lambda model, batch: model(batch[0]),
        ...     loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        ... )
    """

    batches: Iterable[Any]
    run: Callable[[nn.Module, Any], object]
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    def run_on(self, model: nn.Module, batch: Any) -> None:
        """Do what `run` does.

        Raises:
            ConfigError: it fails.
        """
        call_on_batch("calibration.run", self.run, model, batch)

    def first(self, num_batches: int, weights: Sequence[Weight] = ()) -> list[Any]:
        """Return the first batches, at most `num_batches`, for passes that look at some weights.

        Raises:
            ConfigError: there is none (in no process of a distributed run), or processes that share the weights have
                different numbers of them.
        """
        batches = list(islice(self.batches, num_batches))
        total = sum_of_counts(len(batches))
        if any(is_sharded(weight.tensor) for weight in weights):
            is_another = total != len(batches) * num_processes()
            if sum_of_counts(int(is_another)):  # a process with fewer passes would let the others wait for ever
                raise ConfigError(
                    "calibration.batches: expected as many batches in each process of a model that is sharded (FSDP2), "
                    f"got {len(batches)} in one of {num_processes()} and {total} in all. Give each the same number."
                )
        if total == 0:
            raise ConfigError(
                "calibration.batches: expected at least one batch, got none. Give a list or a data loader; "
                "a generator is empty when it is gone through again."
            )
        return batches


def call_on_batch(what: str, function: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Any:
    """Return `function(model, batch)`.

    Raises:
        ConfigError: it fails; `what` is the name of the function.
    """
    try:
        return function(model, batch)
    except SparseDetError:
        raise
    except Exception as error:  # whatever the function of a user raises
        raise ConfigError(
            f"{what}: expected a function that serves every batch, got {type(error).__name__}: {error}. "
            "Correct it, or the batches."
        ) from error


def sum_of_counts(count: int) -> int:
    """Return the sum of the counts of all processes."""
    uses_nccl = num_processes() > 1 and torch.distributed.get_backend() == "nccl"
    total = torch.tensor(float(count), device="cuda" if uses_nccl else None)
    sum_over_processes_(total)
    return int(total)
