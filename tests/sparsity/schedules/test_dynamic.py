"""Dynamic schedule, by hand."""

import math

import pytest
from pydantic import ValidationError
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Dynamic, Sparsifier, SparsityConfig


def test_shares_worked_out_by_hand():
    schedule = Dynamic(sparsity=0.8, drop_fraction=0.4, stop=0.75)
    changes = [schedule.change(step, 80, 10) for step in range(80)]
    assert {change.step for change in changes} == {0, 10, 20, 30, 40, 50}  # 60 = 0.75 * 80 is the end
    assert all(change.target == 0.8 for change in changes)
    assert changes[9].swap == 0.0
    assert changes[20].swap == pytest.approx(0.4 / 2 * (1 + 0.5))  # cos(pi / 3)
    assert changes[30].swap == pytest.approx(0.2)  # cos(pi / 2)
    assert changes[45].swap == pytest.approx(0.2 * (1 + math.cos(2 * math.pi / 3)))
    assert changes[79] == changes[50]
    assert schedule.boundaries(80) == schedule.restarts(80) == (0,)


@pytest.mark.parametrize("total_steps", [1, 10])
def test_a_run_shorter_than_the_interval_keeps_its_first_masks(total_steps):
    schedule = Dynamic(sparsity=0.8, stop=1.0)
    assert {schedule.change(step, total_steps, 100).step for step in range(total_steps)} == {0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.5, "drop_fraction": 0.0}, "greater than 0"),
        ({"sparsity": 0.5, "stop": 1.5}, "less than or equal to 1"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Dynamic(**fields)


def test_weights_cannot_grow_without_an_optimizer():
    layer = nn.Linear(8, 8)
    sparsifier = Sparsifier(layer, SparsityConfig(schedule=Dynamic(sparsity=0.5), update_interval=1))
    sparsifier.before_step(0, 4)
    with pytest.raises(ConfigError, match=r"expected one that is attached, since the schedule grows weights"):
        sparsifier.before_step(1, 4)
