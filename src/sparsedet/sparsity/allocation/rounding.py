"""From shares to whole numbers: weights, and blocks and channels, which go or stay as a whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsedet.common.errors import UnreachableTargetError

TOLERANCE = 0.01
"""How far what goes may be from a target that whole units cannot meet, as a share of what the target counts."""


@dataclass(frozen=True)
class Countable:
    """One tensor.

    Attributes:
        count: number of its weights that go, exact to the weight.
        unit: number of weights that go or stay together.
        highest: number of weights that may go.
        cost: what one weight adds to the target.
    """

    count: int
    unit: int
    highest: int
    cost: float = 1.0


def rounded_up(share: float, size: int) -> int:
    """Return the least number of `size` weights that is not below `share` of them.

    MSBench prunes ``n - int((1 - s) * n)`` of n, which is this but for one more where ``(1 - s) * n`` should be a whole
    number and floating point falls short of it.

    Example:
        >>> rounded_up(0.3, 2304), rounded_up(0.8, 10), rounded_up(0.07, 100)
        (692, 8, 7)
    """
    return math.ceil(round(share * size, 6))


def round_to_units(tensors: Sequence[Countable], target: float, total: float) -> list[int]:
    """Round the number of weights that go of each tensor so that whole units go.

    Every count is rounded down first. Then the tensors, in the order of the share of a unit that this took from
    them, lose one unit more wherever that brings the sum nearer to `target`, and so on until it does nowhere.

    Args:
        tensors: counts of `sparsedet.sparsity.allocation.selection.select_counts`.
        target: what to reach over all tensors.
        total: what the target is a share of.

    Raises:
        UnreachableTargetError: the sum is off by more than 1 % of `total`.

    Example:
        >>> round_to_units([Countable(7, unit=4, highest=12), Countable(5, unit=3, highest=9)], target=12, total=400)
        [8, 3]
    """
    rounded = [min(tensor.count, tensor.highest) // tensor.unit * tensor.unit for tensor in tensors]
    missing = target - sum(count * tensor.cost for count, tensor in zip(rounded, tensors, strict=True))
    order = sorted(range(len(tensors)), key=lambda i: (rounded[i] - tensors[i].count) / tensors[i].unit)
    is_nearer = True
    while is_nearer:
        is_nearer = False
        for index in order:
            tensor = tensors[index]
            cost = tensor.unit * tensor.cost
            if 0 < cost < 2 * missing and rounded[index] + tensor.unit <= tensor.highest:
                rounded[index] += tensor.unit
                missing -= cost
                is_nearer = True
    if abs(missing) > TOLERANCE * total:
        raise UnreachableTargetError(
            f"sparsity: expected a target that whole blocks or channels meet within {TOLERANCE:.0%}, got "
            f"{target / total:.4f}; the nearest is {(target - missing) / total:.4f}. "
            "Choose more or larger layers, or another sparsity."
        )
    return rounded
