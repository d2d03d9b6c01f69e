"""One score for each unit, against sums by hand."""

import math

import pytest
import torch

from sparsedet.sparsity.patterns.units import lowest_units_mask, pool_units


def test_the_score_of_a_unit_is_its_norm_per_weight():
    scores = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [6.0, 8.0]]])
    assert pool_units(scores, (2,)).flatten().tolist() == pytest.approx([math.sqrt(12.5), 0, 1, math.sqrt(50)])
    assert pool_units(scores, (0, 2)).flatten().tolist() == pytest.approx([math.sqrt(27 / 4), math.sqrt(100 / 4)])


@pytest.mark.parametrize("value", [3e38, 1e-42])
def test_no_score_is_too_large_or_too_small_to_square(value):
    assert pool_units(torch.full((2, 3), value), (1,)).flatten().tolist() == pytest.approx([value] * 2, rel=1e-4)


def test_what_is_pruned_goes_first_and_ties_follow_the_order():
    scores = torch.tensor([[2.0, 2.0], [-1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    gone = [(~lowest_units_mask(scores, (1,), count)).all(1).nonzero().flatten().tolist() for count in (0, 2, 4, 6, 8)]
    assert gone == [[], [1], [1, 4], [1, 2, 4], [1, 2, 3, 4]]
