"""What the sums of losses over positive anchors are divided by."""

import torch.distributed as dist
from torch import Tensor


def at_least_one(sums: Tensor, over_processes: bool) -> Tensor:
    """Return `sums`, each raised to at least 1.

    With `over_processes` they are first added over all processes of a distributed run, and the results are
    divided by the number of processes: the mean of the processes' losses is then that of one large batch.
    All processes must call this alike. Forward passes that one process makes one after the other stay apart.

    Args:
        sums: float32, any shape, without gradient.
        over_processes: whether the processes' sums belong together.
    """
    if not (over_processes and dist.is_available() and dist.is_initialized()):
        return sums.clamp(min=1)
    total = sums.clone()
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
