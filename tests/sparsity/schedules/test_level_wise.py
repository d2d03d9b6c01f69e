"""Level-wise schedule: where levels start."""

import pytest
from pydantic import ValidationError

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import LevelWise

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.mark.parametrize(
    ("levels", "shares", "total_steps", "starts"),
    [
        ((0.3, 0.6), None, 8, (0, 4)),  # MSBench, measured
        (LEVELS, None, 100, tuple(int(i * 100 / 7) for i in range(7))),
        (LEVELS, None, 7, (0, 1, 2, 3, 4, 5, 6)),
        (LEVELS, (30, 30, 30, 50, 80, 130, 210), 560, (0, 30, 60, 90, 140, 220, 350)),
        ((0.5, 0.6, 0.7), (0.1, 0.7, 0.2), 10, (0, 1, 8)),  # decimals as written, without float noise
        ((0.5, 0.6), (1, 3), 8, (0, 2)),
    ],
)
def test_starts(levels, shares, total_steps, starts):
    schedule = LevelWise(levels=levels, shares=shares)
    assert schedule.boundaries(total_steps) == starts
    assert schedule.restarts(total_steps) == starts


def test_united_perceptions_levels_begin_one_step_late_and_their_rates_do_not():
    schedule = LevelWise(levels=(0.3, 0.5, 0.7), shares=(1, 1, 2), up_compat=True)
    assert schedule.boundaries(13) == (0, 4, 7)
    assert schedule.restarts(13) == (0, 3, 6)
    with pytest.raises(ConfigError, match="at least one step for each of the 7 levels, got 7 steps"):
        LevelWise(levels=LEVELS, up_compat=True).boundaries(7)
    assert LevelWise(levels=(0.3,), up_compat=True).boundaries(1) == (0,)


@pytest.mark.parametrize("total_steps", [0, 1, 6])
def test_too_few_steps_are_refused(total_steps):
    message = f"total_steps: expected at least one step for each of the 7 levels, got {total_steps} steps"
    with pytest.raises(ConfigError, match=message):
        LevelWise(levels=LEVELS).boundaries(total_steps)


def test_no_steps_are_too_few_for_one_level():
    with pytest.raises(ConfigError, match="at least one step for each of the 1 levels, got 0 steps"):
        LevelWise(levels=(0.5,)).boundaries(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": (0.5, 0.3)}, r"expected levels that rise, got \[0.5, 0.3\]. Sort them, each once."),
        ({"levels": (0.5, 1.0)}, r"less than 1"),
        ({"levels": (0.5, 0.5)}, r"expected levels that rise, got \[0.5, 0.5\]. Sort them, each once."),
        ({"levels": (-0.1,)}, r"greater than or equal to 0"),
        ({"levels": ()}, r"at least 1 item"),
        ({"levels": (float("nan"),)}, r"finite number"),
        (
            {"levels": (0.5, 0.6), "shares": (1.0,)},
            r"shares: expected one share for each of 2 levels, got 1.",
        ),
        ({"levels": (0.5,), "shares": (0.0,)}, r"greater than 0"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        LevelWise(**fields)
