"""Weights and masks where several processes train one model, each the whole of it (DDP) or a part (FSDP2)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.common.errors import SparseDetError
from sparsedet.common.processes import is_first, num_processes


def is_sharded(tensor: Tensor) -> bool:
    """Tell a DTensor, of which every process holds a part, without importing what defines it."""
    cls = type(tensor)
    return cls not in (Tensor, nn.Parameter) and any(base.__name__ == "DTensor" for base in cls.__mro__)


def whole(tensor: Tensor) -> Tensor:
    """Return all entries of a tensor, sharded or not; of a sharded one every process has to ask."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor.detach()
    result: Tensor = sharded.full_tensor()
    return result


def own_part(tensor: Tensor) -> Tensor:
    """Return the entries that this process holds, as a view without a gradient."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor.detach()
    with torch.no_grad():
        result: Tensor = sharded.to_local()
    return result


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy of `tensor`, all of which every process has, sharded as `like` is, if that is."""
    if not is_sharded(like):
        return tensor.clone()
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    device = own_part(like).device
    result: Tensor = distribute_tensor(
        tensor.to(device), sharded.device_mesh, sharded.placements, src_data_rank=None
    ).clone()
    return result


def reshard(model: nn.Module) -> None:
    """Have the modules of a model that FSDP2 shards hold sharded parameters, which after a forward pass some do not."""
    for module in model.modules():
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            sharding: Any = module
            sharding.reshard()


def sum_over_processes_(tensor: Tensor) -> None:
    """Add up what every process holds in `tensor`, in each of them; a sharded one is complete already."""
    if num_processes() > 1 and not is_sharded(tensor):
        torch.distributed.all_reduce(tensor)


def leave_to_first_process_(tensor: Tensor) -> None:
    """Zero what stands the same in every process in all but the first, so that the sum is that; not a sharded one."""
    if not (is_first() or is_sharded(tensor)):
        tensor.zero_()


def copy_from_first_process_(tensor: Tensor) -> None:
    """Replace what every process holds in `tensor`, contiguous, by what the first holds."""
    if num_processes() > 1:
        torch.distributed.broadcast(tensor, src=0)


def check_equal(checksums: Mapping[str, int]) -> None:
    """Compare with the other processes, all of which have to call it.

    Raises:
        SparseDetError: a value differs, or is missing in one of them; the message names the first.
    """
    if num_processes() == 1:
        return
    found: list[dict[str, int]] = [{} for _ in range(num_processes())]
    torch.distributed.all_gather_object(found, dict(checksums))
    for name in dict.fromkeys(name for row in found for name in row):
        ranks = [rank for rank, row in enumerate(found) if row.get(name) != found[0].get(name)]
        if ranks:
            raise SparseDetError(
                f"{name}: expected the same mask in all {len(found)} processes, got another in process "
                f"{', '.join(map(str, ranks))} than in process 0. Start all of them from the same weights and, if the "
                "criterion needs them, the same calibration data."
            )
