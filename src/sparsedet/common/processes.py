"""The processes of one run, as `torchrun` or `accelerate launch` starts them; alone, every function here is trivial."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sparsedet.common.errors import ProcessesError, SparseDetError

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)  # the first process evaluates, and checks all data of a suite, while the others wait


def num_processes() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of the processes this is, counted from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_first() -> bool:
    """Tell the process that writes files and speaks."""
    return rank() == 0


def join_processes(device: torch.device) -> torch.device:
    """Find the other processes that a launcher has started, if it has, and return the device of this one.

    Args:
        device: as asked for; of several GPUs each process of a machine takes another.

    Raises:
        ProcessesError: they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    from accelerate import PartialState

    is_cpu = device.type == "cpu"
    try:
        own: torch.device = PartialState(cpu=is_cpu, timeout=TIMEOUT).device
    except RuntimeError as error:  # also all of torch.distributed
        raise ProcessesError(
            f"processes: expected {os.environ['WORLD_SIZE']} to find each other, got '{str(error).splitlines()[0]}'. "
            "See that all were started and that their machines reach each other."
        ) from error
    return torch.device("cpu") if is_cpu else own


def leave_processes() -> None:
    """Part from the other processes at the end of all work."""
    if num_processes() > 1:
        dist.destroy_process_group()


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process; all have to call this alike."""
    if num_processes() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.float32, device=_device())
    dist.all_reduce(values)
    return tuple(bool(value) for value in values.tolist())


def from_first(function: Callable[[], Value]) -> Value:
    """Call `function` in the first process alone and return in all of them what it gave; all have to call this alike.

    Raises:
        SparseDetError: what `function` raised, in all of them.
    """
    if num_processes() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome = [function(), None]
        except SparseDetError as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].is_said = not is_first()
        raise outcome[1]
    value: Value = outcome[0]
    return value


def mean_over_processes(values: list[float]) -> list[float]:
    """Return the mean of each value over the processes; all have to call this alike."""
    if num_processes() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    means: list[float] = (sums / num_processes()).tolist()
    return means


def broadcast_(tensors: Sequence[torch.Tensor]) -> None:
    """Give all processes what the first one holds in `tensors`, which are of one type; all have to call this alike."""
    if num_processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.broadcast(flat, src=0)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, by rank, in the first; an empty list in the others."""
    if num_processes() == 1:
        return [value]
    gathered: list[Any] = [None] * num_processes() if is_first() else []
    dist.gather_object(value, gathered if is_first() else None, dst=0)
    return gathered


def is_lost_process(error: BaseException) -> bool:
    """Tell the error that a broken connection to another process gives; it has no type of its own."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "socket")
    return num_processes() > 1 and isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _device() -> torch.device:
    """Return where tensors have to be for the processes to exchange them."""
    return torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
