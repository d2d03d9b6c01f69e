"""The exact choice that all allocations share: over all tensors the weights with the smallest keys go.

An allocation gives every weight a key that does not fall when the weights of a tensor are taken in the order
in which they are to go. Finding the K smallest keys of all tensors needs no sort: the scores of a tensor are
counted in buckets (upper 16 bits of a float32: 128 buckets an octave), the keys at the borders of the buckets
bracket the threshold, and only the few weights inside the bracket are sorted. The counts of the buckets serve
any number of targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import SparseDetError, UnreachableTargetError

Array = NDArray[np.float64]

MAX_PERCENT = 99
"""At most this share of a tensor is pruned (rounded down), so that at least one weight of each stays."""

_FIRST_INFINITE = 0x7F80  # bucket of inf; NaN lies above


@dataclass(frozen=True)
class TensorSummary:
    """What an allocation knows about one chosen tensor.

    Attributes:
        name: full parameter name.
        shape: shape of the weight.
        energy: sum of the squared scores.
        depth: how many stride groups before the coarsest one the layer works at (0: in the coarsest).
    """

    name: str
    shape: tuple[int, ...]
    energy: float
    depth: int = 0


class Keyed(Protocol):
    """An allocation, as `select_counts` sees it."""

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Return the keys of some weights of `tensor`.

        Args:
            tensor: the tensor they are from.
            rank: how many weights of the tensor go before each (0-based position in the order of scores).
            score: their scores.
            energy_below: sum of the squared scores of the weights that go before each.

        Returns:
            Keys >= 0 that fall in none of `rank`, `score` and `energy_below`.
        """
        ...


def max_zeros(numel: int) -> int:
    """Return how many weights of a tensor may be pruned at most."""
    return numel * MAX_PERCENT // 100


class ScoredTensor:
    """Scores of one tensor, counted in buckets.

    Args:
        name: full parameter name.
        shape: shape of the weight.
        scores: scores of its weights, flat, float32, >= 0, 0 where a weight is pruned already.
        num_pruned: number of weights that are pruned already; they go first.
        depth: see `TensorSummary`.

    Raises:
        SparseDetError: a score is infinite or NaN.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        scores: NDArray[np.float32],
        num_pruned: int = 0,
        depth: int = 0,
    ) -> None:
        self.bits = scores.view(np.int32)  # floats >= 0 have the order of their bits, denormal or not
        buckets = self.bits >> 16
        counts = np.bincount(buckets)
        if counts.size > _FIRST_INFINITE:
            raise SparseDetError(
                f"{name}: expected finite weights, got inf or NaN. The training diverged: "
                "lower the learning rate, or start from an earlier checkpoint."
            )
        counts[:1] -= num_pruned  # they are zeros
        used = np.flatnonzero(counts)
        energies = np.bincount(buckets, weights=np.square(scores, dtype=np.float64))[used]
        self.first_bits = (used << 16).astype(np.int32)
        self.last_bits = (used << 16 | 0xFFFF).astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(counts[used])])
        self.energy_starts = np.concatenate([[0.0], np.cumsum(energies)])
        self.summary = TensorSummary(name, shape, float(self.energy_starts[-1]), depth)
        self.num_pruned = num_pruned
        self.num_left = max(0, max_zeros(scores.size) - num_pruned)

    def bounds(self, allocation: Keyed) -> tuple[Array, Array]:
        """Return keys that no weight of a bucket falls below and none exceeds, for each bucket."""
        first, last = _floats(self.first_bits), _floats(self.last_bits)
        ranks = (self.num_pruned + self.starts).astype(np.float64)
        energy_ends = np.maximum(self.energy_starts[1:] - np.square(first), self.energy_starts[:-1])
        return (
            allocation.key(self.summary, ranks[:-1], first, self.energy_starts[:-1]),
            allocation.key(self.summary, ranks[1:] - 1, last, energy_ends),
        )

    def window(self, allocation: Keyed, first: int, end: int) -> Array:
        """Return the keys of the weights in buckets [first, end), rising, without those that must stay."""
        if first >= end:
            return np.empty(0)
        inside = self.bits[(self.bits >= self.first_bits[first]) & (self.bits <= self.last_bits[end - 1])]
        inside.sort()
        if self.first_bits[first] == 0:
            inside = inside[self.num_pruned :]
        score = _floats(inside)
        start = self.starts[first]
        rank = np.arange(self.num_pruned + start, self.num_pruned + start + score.size, dtype=np.float64)
        energy = self.energy_starts[first] + np.concatenate([[0.0], np.cumsum(np.square(score))[:-1]])
        return allocation.key(self.summary, rank, score, energy)[: max(0, self.num_left - int(start))]


def select_counts(allocation: Keyed, tensors: Sequence[ScoredTensor], targets: Sequence[int]) -> list[list[int]]:
    """Return how many weights of each tensor go, for each of several targets.

    The weights that go are the already pruned ones and then those with the smallest keys; equal keys go in
    the order of the tensors, and within a tensor in the order of (score, index). At most 99 % of a tensor
    goes.

    Args:
        allocation: gives the keys.
        tensors: the chosen tensors, in the order of the model.
        targets: numbers of zeros to reach over all tensors, pruned ones included.

    Raises:
        UnreachableTargetError: a target is above what the limit of 99 % allows, or below what is pruned
        already.
    """
    bounds = [tensor.bounds(allocation) for tensor in tensors]
    sizes = [np.diff(np.minimum(tensor.starts, tensor.num_left)) for tensor in tensors]
    lows = _Cumulative([low for low, _ in bounds], sizes)
    highs = _Cumulative([high for _, high in bounds], sizes)
    num_pruned = sum(tensor.num_pruned for tensor in tensors)
    num_left = sum(tensor.num_left for tensor in tensors)

    results = []
    for target in targets:
        if not 0 <= target - num_pruned <= num_left:
            raise UnreachableTargetError(
                f"sparsity: expected between {num_pruned} and {num_pruned + num_left} zeros in the chosen "
                f"weights, got a target of {target}. Choose more weights, or another sparsity."
            )
        counts = [tensor.num_pruned for tensor in tensors]
        if target > num_pruned:
            low, high = lows.value(target - num_pruned), highs.value(target - num_pruned)
            counts = _counts(allocation, tensors, bounds, (low, high), target)
        results.append(counts)
    return results


class _Cumulative:
    """Bucket keys of all tensors, rising, with the number of weights up to each."""

    def __init__(self, keys: Sequence[Array], sizes: Sequence[NDArray[np.int64]]) -> None:
        every_key = np.concatenate(keys)
        order = np.argsort(every_key)
        self.keys = every_key[order]
        self.totals = np.cumsum(np.concatenate(sizes)[order])

    def value(self, count: int) -> float:
        """Return the smallest key up to which there are `count` weights."""
        return float(self.keys[np.searchsorted(self.totals, count)])


def _counts(
    allocation: Keyed,
    tensors: Sequence[ScoredTensor],
    bounds: Sequence[tuple[Array, Array]],
    bracket: tuple[float, float],
    target: int,
) -> list[int]:
    """Resolve one target, whose threshold key lies in `bracket`."""
    counts, windows = [], []
    for tensor, (low, high) in zip(tensors, bounds, strict=True):
        first = int(np.searchsorted(high, bracket[0], side="left"))
        end = int(np.searchsorted(low, bracket[1], side="right"))
        counts.append(tensor.num_pruned + min(int(tensor.starts[first]), tensor.num_left))
        windows.append(tensor.window(allocation, first, end))
    missing = target - sum(counts)
    threshold = np.partition(np.concatenate(windows), missing - 1)[missing - 1]
    below = [int(np.searchsorted(window, threshold, side="left")) for window in windows]
    ties = [int(np.searchsorted(window, threshold, side="right")) for window in windows]
    missing -= sum(below)
    for index in range(len(counts)):
        num_tied = min(missing, ties[index] - below[index])
        counts[index] += below[index] + num_tied
        missing -= num_tied
    return counts


def _floats(bits: NDArray[np.int32]) -> Array:
    return bits.view(np.float32).astype(np.float64)
