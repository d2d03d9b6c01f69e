"""Energy allocation against hand-worked numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Energy, OneShot, Sparsifier, SparsityConfig
from sparsedet.sparsity.allocation.selection import ScoredTensor, select_counts

RISING = np.array([4, 1, 3, 2], np.float32)  # squares 1 4 9 16 of 30: shares gone 1/30 5/30 14/30 1
EQUAL = np.array([5, 5, 5, 5], np.float32)  # shares gone 1/4 1/2 3/4 1


@pytest.mark.parametrize(
    ("tuning", "expected"),
    [
        # keys of the first tensor .033 .167 .467, of the second .25 .5 .75; at most three of four go
        (0.0, [[1, 0], [2, 0], [2, 1], [3, 1], [3, 2], [3, 3]]),
        # one group before the coarsest, f = 0.8: .042 .208 .583
        (0.5, [[1, 0], [2, 0], [2, 1], [2, 2], [3, 2], [3, 3]]),
        # f = 0.2: .167 .833 2.33
        (2.0, [[1, 0], [1, 1], [1, 2], [1, 3], [2, 3], [3, 3]]),
    ],
)
def test_hand_worked(tuning, expected):
    tensors = [ScoredTensor("fine", (4,), lambda: RISING, depth=1), ScoredTensor("coarse", (4,), lambda: EQUAL)]
    assert select_counts(Energy(tuning=tuning), tensors, range(1, 7)) == expected


def test_early_layers_are_spared_by_their_stride_group(bag):
    model = bag(first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 1), third=nn.Conv2d(4, 4, 1), fc=nn.Linear(4, 4))
    for module in model.children():  # equal weights: e(k) = k / 16 in each
        nn.init.ones_(module.weight)
    config = SparsityConfig(schedule=OneShot(sparsity=31 / 64), allocation=Energy())
    # Inputs of 64, 32 and 16 pixels, fc in the coarsest group: f = .64 .8 1 1. Up to a key k / (16 f) of .6
    # there are 16 * .6 * f = 6.1, 7.7, 9.6, 9.6 weights, together 31.
    assert list(Sparsifier(model, config, ()).allocate(0).values()) == [6 / 16, 7 / 16, 9 / 16, 9 / 16]


def test_needs_example_inputs():
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Energy())
    message = "sparsity.input_shape: expected the shape of an input, which the allocation 'energy' needs, got null"
    with pytest.raises(ConfigError, match=message):
        Sparsifier(nn.Linear(4, 4), config)


@pytest.mark.parametrize("tuning", [-0.1, 2.5])
def test_tuning_outside_its_range_is_refused(tuning):
    with pytest.raises(ValueError, match="tuning"):
        Energy(tuning=tuning)


def test_a_tensor_of_zeros_goes_first(bag):
    model = bag(a=nn.Linear(10, 10), b=nn.Linear(10, 10))
    nn.init.zeros_(model.b.weight)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Energy()), ())
    sparsifier.prune_(0)
    assert int((~sparsifier.masks["b.weight"]).sum()) == 99
    assert torch.count_nonzero(model.a.weight) == 99
