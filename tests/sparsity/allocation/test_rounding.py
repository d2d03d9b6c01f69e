"""Whole blocks and channels: by hand, and what must hold for any counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedet.common.errors import UnreachableTargetError
from sparsedet.sparsity.allocation.rounding import Countable, round_to_units


@pytest.mark.parametrize(
    ("tensors", "target", "expected"),
    [
        ([Countable(8, 4, 12), Countable(6, 3, 9)], 14, [8, 6]),  # whole already
        ([Countable(7, 4, 12), Countable(5, 3, 9)], 12, [8, 3]),  # 3/4 of a unit before 2/3; then 11, and 14 is further
        ([Countable(5, 4, 12), Countable(5, 3, 9)], 10, [4, 6]),  # 2/3 before 1/4
        ([Countable(6, 4, 4), Countable(5, 3, 9)], 11, [4, 6]),  # the limit; the rest goes elsewhere
        ([Countable(2, 4, 12), Countable(2, 4, 12)], 4, [4, 0]),  # equal shares: in the order of the model
        ([Countable(2, 4, 12)], 2, [0]),  # as far from 0 as from 4: the smaller
        ([Countable(3, 4, 12, cost=10.0), Countable(3, 4, 12, cost=1.0)], 33.0, [4, 0]),  # 40 is near enough
        ([Countable(7, 1, 9), Countable(6, 4, 8)], 13, [9, 4]),  # 15 is no nearer than 11; single weights make 13
    ],
)  # fmt: skip
def test_by_hand(tensors, target, expected):
    assert round_to_units(tensors, target, total=10000) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 20), st.floats(0, 1)).map(
            lambda drawn: Countable(int(drawn[2] * drawn[0] * drawn[1]), drawn[0], drawn[0] * drawn[1])
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_sum_is_as_near_as_one_more_unit_can_bring_it(tensors):
    target = sum(tensor.count for tensor in tensors)
    rounded = round_to_units(tensors, target, total=1e9)
    missing = target - sum(rounded)
    for count, tensor in zip(rounded, tensors, strict=True):
        assert count % tensor.unit == 0
        assert tensor.count // tensor.unit * tensor.unit <= count <= tensor.highest
        assert count == tensor.highest or abs(missing) <= abs(missing - tensor.unit)
    assert abs(missing) <= max(tensor.unit for tensor in tensors) / 2
    assert (
        round_to_units(
            [Countable(c, t.unit, t.highest) for c, t in zip(rounded, tensors, strict=True)], sum(rounded), 1e9
        )
        == rounded
    )


def test_a_target_that_whole_units_miss_is_refused():
    message = (
        "sparsity: expected a target that whole blocks or channels meet within 1%, got 0.3000; the nearest is 0.2500. "
        "Choose more or larger layers, or another sparsity."
    )
    with pytest.raises(UnreachableTargetError) as error:
        round_to_units([Countable(12, 10, 30)], target=12, total=40)
    assert str(error.value) == message
    assert round_to_units([Countable(12, 10, 30)], target=12, total=200) == [10]
