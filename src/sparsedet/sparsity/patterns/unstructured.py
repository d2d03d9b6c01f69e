"""Unstructured pattern: a zero may stand anywhere."""

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsedet.sparsity.patterns.pattern import BasePattern

_SAMPLE_STEP = 61  # a prime, so that it does not fall into step with channels and kernels


class Unstructured(BasePattern):
    """Zeros anywhere in a tensor; the allocation says how many."""

    type: Literal["unstructured"] = "unstructured"
    serves_any_layout: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Short name for tables."""
        return "unstructured"

    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """See `unstructured_mask`."""
        return unstructured_mask(scores, num_zeros)


def unstructured_mask(scores: Tensor, num_zeros: int) -> Tensor:
    """Drop exactly the `num_zeros` lowest scores.

    Args:
        scores: importance, float32 on the CPU, any shape; >= 0, or -1 for what must go first.
        num_zeros: entries to drop, 0 <= num_zeros <= scores.numel().

    Returns:
        Bool mask of the same shape, True = keep. Of equal scores those with the lower (row-major) index go
        first.

    Example:
        >>> unstructured_mask(torch.tensor([0.3, 0.1, 0.1, 0.2]), 1)
        tensor([ True, False,  True,  True])
    """
    # The bits of such floats, read as integers, have the order of the floats, also where denormals are
    # flushed.
    bits = scores.contiguous().view(torch.int32).numpy().reshape(-1)
    keep = np.ones(bits.size, dtype=np.bool_)
    if num_zeros > 0:
        threshold = kth_smallest(bits, num_zeros - 1)
        np.greater(bits, threshold, out=keep)
        tied = np.flatnonzero(bits == threshold)
        num_below = bits.size - int(np.count_nonzero(keep)) - tied.size
        keep[tied[num_zeros - num_below :]] = True
    return torch.from_numpy(keep).view(scores.shape)


def kth_smallest(values: NDArray[np.int32], k: int) -> int:
    """Return the value that would stand at index `k` if `values` were sorted.

    A sorted sample of every 61st value brackets it, so that only the few values inside the bracket are
    partitioned: four times as fast for a large layer as partitioning all. Where the sample misleads, all are.

    Source: the idea of Floyd and Rivest 1975, "Expected time bounds for selection".
    """
    sample = np.sort(values[::_SAMPLE_STEP])
    position, margin = k * sample.size // values.size, 3 * math.isqrt(sample.size) + 1
    low = sample[position - margin] if position >= margin else np.iinfo(np.int32).min
    high = sample[position + margin] if position + margin < sample.size else np.iinfo(np.int32).max
    index = k - int(np.count_nonzero(values < low))
    inside = values[(values >= low) & (values <= high)]
    if not 0 <= index < inside.size:
        index, inside = k, values
    return int(np.partition(inside, index)[index])
