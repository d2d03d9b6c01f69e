"""The exact choice that all allocations share: over all tensors the weights with the smallest keys go.

An allocation gives every weight a key that does not fall when the weights of a tensor are taken in the order
in which they are to go. Finding the smallest keys of all tensors needs no sort, and not all weights at once: the
scores of one tensor after another are counted in buckets (upper 16 bits of a float32: 128 buckets an octave), the
keys at the borders of the buckets bracket the threshold, and only the few weights inside the bracket are looked
at again and sorted. The counts of the buckets serve any number of targets.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import SparseDetError, UnreachableTargetError

Array = NDArray[np.float64]
Scores = Callable[[], NDArray[np.float32]]

MAX_PERCENT = 99
"""At most this share of a tensor is pruned (rounded down), so that at least one weight of each stays."""

_FIRST_INFINITE = 0x7F80  # bucket of inf; NaN lies above
_NUM_RANK_BUCKETS = 1024


@dataclass(frozen=True)
class TensorSummary:
    """What an allocation knows about one tensor.

    Attributes:
        name: full parameter name.
        shape: shape of the weight.
        size: number of its scores.
        energy: sum of the squared scores; 0 if it is not summed up.
        depth: how many stride groups before the coarsest one the layer works at (0: in the coarsest).
    """

    name: str
    shape: tuple[int, ...]
    size: int
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
            energy_below: sum of the squared scores of the weights that go before each, where it is summed up.

        Returns:
            Keys >= 0 that fall in none of `rank`, `score` and `energy_below`.
        """
        ...


def max_zeros(numel: int) -> int:
    """Return how many weights of a tensor may be pruned at most."""
    return numel * MAX_PERCENT // 100


def not_finite(name: str) -> SparseDetError:
    """Return the error of a weight that holds NaN or inf."""
    return SparseDetError(
        f"{name}: expected finite weights, got inf or NaN. The training diverged: "
        "lower the learning rate, or start from an earlier checkpoint."
    )


class ScoredTensor:
    """Scores of one tensor, counted in buckets; the scores themselves are not kept.

    Args:
        name: full parameter name.
        shape: shape of the weight.
        scores: returns the scores of its weights, the same at every call: flat, float32, >= 0, 0 where a
            weight is pruned already. None: all are taken to be 0, and none is looked at, for allocations whose keys
            depend on the rank alone.
        num_pruned: number of weights that are pruned already; they go first.
        lowest: number of weights that go at least.
        highest: number of weights that go at most (those that are pruned already stay so); default
            `max_zeros`.
        cost: what one weight adds to the target of `select_counts`: 1, or the multiplications it takes part
            in.
        depth: see `TensorSummary`.
        with_energy: whether squared scores are summed up, which takes as long as all the rest.

    Raises:
        SparseDetError: a score is infinite or NaN.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        scores: Scores | None,
        *,
        num_pruned: int = 0,
        lowest: int = 0,
        highest: int | None = None,
        cost: float = 1.0,
        depth: int = 0,
        with_energy: bool = True,
    ) -> None:
        self._scores = scores
        if scores is None:
            self._count_ranks(math.prod(shape))
        else:
            self._count_scores(name, scores(), with_energy)
        size = int(self.starts[-1])
        self.summary = TensorSummary(name, shape, size, float(self.energy_starts[-1]), depth)
        self.base = max(num_pruned, lowest)
        self.limit = max(self.base, max_zeros(size) if highest is None else highest)
        self.cost = cost

    def _count_ranks(self, size: int) -> None:
        """Let buckets be equal shares of the ranks."""
        self.starts: NDArray[np.int64] = np.unique(np.linspace(0, size, _NUM_RANK_BUCKETS + 1).astype(np.int64))
        self.first_bits = self.last_bits = np.zeros(self.starts.size - 1, np.int32)
        self.energy_starts = np.zeros(self.starts.size)

    def _count_scores(self, name: str, values: NDArray[np.float32], with_energy: bool) -> None:
        buckets = (_bits(values) >> 16).astype(np.intp)
        counts = np.bincount(buckets)
        if counts.size > _FIRST_INFINITE:
            raise not_finite(name)
        used = np.flatnonzero(counts)
        squares = np.square(values, dtype=np.float64) if with_energy else None
        energies = np.zeros(used.size) if squares is None else np.bincount(buckets, weights=squares)[used]
        self.first_bits = (used << 16).astype(np.int32)
        self.last_bits = (used << 16 | 0xFFFF).astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(counts[used])])
        self.energy_starts = np.concatenate([[0.0], np.cumsum(energies)])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of weights in each bucket that may go or stay."""
        clipped: NDArray[np.int64] = np.clip(self.starts, self.base, self.limit)
        return clipped[1:] - clipped[:-1]

    def bounds(self, allocation: Keyed) -> tuple[Array, Array]:
        """Return keys that no weight of a bucket falls below and none exceeds, for each bucket."""
        first, last = _floats(self.first_bits), _floats(self.last_bits)
        ranks = self.starts.astype(np.float64)
        energy_ends = np.maximum(self.energy_starts[1:] - np.square(first), self.energy_starts[:-1])
        return (
            allocation.key(self.summary, ranks[:-1], first, self.energy_starts[:-1]),
            allocation.key(self.summary, ranks[1:] - 1, last, energy_ends),
        )

    def windows(self, allocation: Keyed, ranges: Sequence[tuple[int, int]]) -> list[Array]:
        """Return the keys, rising, of the weights that may go or stay in each range [first, end) of buckets."""
        is_asked = any(first < end for first, end in ranges)
        bits = _bits(self._scores()) if is_asked and self._scores is not None else np.empty(0, np.int32)
        return [self._window(allocation, bits, first, end) for first, end in ranges]

    def _window(self, allocation: Keyed, bits: NDArray[np.int32], first: int, end: int) -> Array:
        if first >= end:
            return np.empty(0)
        start = int(self.starts[first])
        if self._scores is None:
            score = np.zeros(int(self.starts[end]) - start)
        else:
            inside = bits[(bits >= self.first_bits[first]) & (bits <= self.last_bits[end - 1])]
            inside.sort()
            score = _floats(inside)
        rank = np.arange(start, start + score.size, dtype=np.float64)
        energy = self.energy_starts[first] + np.concatenate([[0.0], np.cumsum(np.square(score))[:-1]])
        free = slice(max(0, self.base - start), max(0, self.limit - start))
        return allocation.key(self.summary, rank[free], score[free], energy[free])


def select_counts(allocation: Keyed, tensors: Sequence[ScoredTensor], targets: Sequence[float]) -> list[list[int]]:
    """Return how many weights of each tensor go, for each of several targets.

    Of every tensor first those go that must, then over all tensors those with the smallest keys, until their
    costs reach the target: with costs of 1 exactly as many as it says, otherwise the smallest number that
    reaches it. Equal keys go in the order of the tensors, and within a tensor in the order of (score, index).

    Args:
        allocation: gives the keys.
        tensors: the tensors, in the order of the model.
        targets: costs to reach over all tensors, with those of the weights that are pruned already.

    Raises:
        UnreachableTargetError: a target is above what may go, or below what must.
    """
    must = sum(tensor.base * tensor.cost for tensor in tensors)
    may = sum(tensor.limit * tensor.cost for tensor in tensors)
    largest = max(tensor.cost for tensor in tensors)
    for target in targets:
        if target > may or (target < must and target <= must - largest):
            unit = "zeros" if largest == 1 else "multiply-accumulates"
            raise UnreachableTargetError(
                f"sparsity: expected between {must:.15g} and {may:.15g} {unit} in the chosen weights, "
                f"got a target of {target:.15g}. Choose more weights, or another sparsity."
            )
    bounds = [tensor.bounds(allocation) for tensor in tensors]
    lows = _Cumulative([low for low, _ in bounds], tensors)
    highs = _Cumulative([high for _, high in bounds], tensors)
    brackets = [(lows.value(target - must), highs.value(target - must)) for target in targets]
    firsts, windows = [], []
    for tensor, (low, high) in zip(tensors, bounds, strict=True):
        # A bucket whose keys are all below the bracket goes, one whose keys are all above it stays.
        ranges = [
            (int(np.searchsorted(high, bracket[0], "left")), int(np.searchsorted(low, bracket[1], "right")))
            for bracket in brackets
        ]
        firsts.append([int(np.clip(tensor.starts[first], tensor.base, tensor.limit)) for first, _ in ranges])
        windows.append(tensor.windows(allocation, ranges))
    return [
        _counts(tensors, [row[index] for row in firsts], [row[index] for row in windows], target)
        for index, target in enumerate(targets)
    ]


class _Cumulative:
    """Bucket keys of all tensors, rising, with the cost of the weights up to each."""

    def __init__(self, keys: Sequence[Array], tensors: Sequence[ScoredTensor]) -> None:
        every_key = np.concatenate(keys)
        order = np.argsort(every_key)
        self.keys = every_key[order]
        self.totals = np.cumsum(np.concatenate([tensor.sizes * tensor.cost for tensor in tensors])[order])

    def value(self, cost: float) -> float:
        """Return the smallest key up to which the weights cost `cost`; nothing is cheaper than nothing."""
        if cost <= 0:
            return -np.inf
        return float(self.keys[min(int(np.searchsorted(self.totals, cost)), self.keys.size - 1)])


def _counts(tensors: Sequence[ScoredTensor], counts: list[int], windows: Sequence[Array], target: float) -> list[int]:
    """Add to `counts`, which are below the target, the weights of smallest key in `windows` that reach it."""
    missing = target - sum(count * tensor.cost for count, tensor in zip(counts, tensors, strict=True))
    owner = np.repeat(np.arange(len(windows)), [window.size for window in windows])
    if missing <= 0 or owner.size == 0:
        return counts
    order = np.argsort(np.concatenate(windows), kind="stable")
    costs = np.cumsum(np.array([tensor.cost for tensor in tensors])[owner[order]])
    gone = owner[order[: int(np.searchsorted(costs, missing)) + 1]]
    return [count + int(added) for count, added in zip(counts, np.bincount(gone, minlength=len(counts)), strict=True)]


def _bits(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Floats >= 0 have the order of their bits, denormal or not."""
    return scores.view(np.int32)


def _floats(bits: NDArray[np.int32]) -> Array:
    return bits.view(np.float32).astype(np.float64)
