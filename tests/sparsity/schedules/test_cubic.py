"""Cubic schedule, by hand."""

import pytest
from pydantic import ValidationError

from sparsedet.sparsity import Cubic

# 0.9 * (1 - (1 - j/5)^3)
RAISES = {10: 0.0, 20: 0.4392, 30: 0.7056, 40: 0.8424, 50: 0.8928, 60: 0.9}


def test_targets_worked_out_by_hand():
    schedule = Cubic(sparsity=0.9, first=0.1, last=0.6)
    for step in range(100):
        change = schedule.change(step, 100, 10)
        due = max((start for start in RAISES if start <= step), default=0)
        assert (change.step, change.level, change.swap) == (due, 0, 0.0)
        assert change.target == pytest.approx(RAISES.get(due, 0.0), abs=1e-12)
    assert schedule.change(60, 100, 10).target == 0.9
    assert schedule.target_sparsities == (0.9,)
    assert schedule.boundaries(100) == schedule.restarts(100) == (0,)


def test_raises_begin_at_the_initial_sparsity_and_end_before_last():
    schedule = Cubic(sparsity=0.75, initial=0.25, last=0.7)
    # (70 - 0) // 30 = 2 raises: at 30 to 0.75 - 0.5 * (1/2)^3, at 60 to 0.75
    found = {(change.step, change.target) for step in range(100) if (change := schedule.change(step, 100, 30))}
    assert found == {(0, 0.25), (30, 0.6875), (60, 0.75)}


@pytest.mark.parametrize(("total_steps", "interval"), [(4, 100), (1, 1), (3, 3)])
def test_a_run_too_short_for_a_raise_prunes_to_the_end_at_once(total_steps, interval):
    change = Cubic(sparsity=0.9, last=1.0).change(0, total_steps, interval)
    assert (change.step, change.target) == (0, 0.9)


def test_the_last_raise_is_never_behind_the_last_step():
    assert Cubic(sparsity=0.9, last=1.0).change(9, 10, 5).target == 0.9
    assert Cubic(sparsity=0.9, last=1.0).change(9, 10, 1) == Cubic(sparsity=0.9, last=1.0).change(20, 10, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.5, "initial": 0.5}, r"initial: expected less than the sparsity 0.5, got 0.5. Lower it"),
        ({"sparsity": 0.5, "first": 0.6}, r"first: expected less than last, 0.6, got 0.6. Lower it."),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.5, "last": 0.0}, "greater than 0"),
        ({"sparsity": 0.5, "last": 1.1}, "less than or equal to 1"),
        ({}, "sparsity"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Cubic(**fields)
