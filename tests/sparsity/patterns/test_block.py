"""Block masks: which blocks go, and which layers are served."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.sparsity import Block

NEEDS = "block 16x1 needs out_channels/groups % 16 == 0 and in_channels/groups % 1 == 0, got "


def test_blocks_of_channels_go_at_one_kernel_position():
    weight = torch.ones(4, 4, 2)
    weight[2:, :2, 1] = 0.1  # the third block row, first column, second position
    weight[:2, 2:, 0] = 0.2
    assert torch.equal(Block(shape=(2, 2)).mask(weight, 4), weight != 0.1)
    assert torch.equal(Block(shape=(2, 2)).mask(weight, 8), weight == 1)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 4), (2, 4), (8, 8)])
@pytest.mark.parametrize("num_blocks", [0, 1, 3, 18])
def test_the_blocks_with_the_smallest_norms_go(shape, num_blocks):
    weight = np.random.default_rng(0).standard_normal((16, 24, 3))
    norms = {}
    for row in range(0, 16, shape[0]):
        for column in range(0, 24, shape[1]):
            for position in range(3):
                block = slice(row, row + shape[0]), slice(column, column + shape[1]), position
                norms[row, column, position] = np.linalg.norm(weight[block])
    expected = np.ones((16, 24, 3), dtype=bool)
    for row, column, position in sorted(norms, key=norms.get)[:num_blocks]:
        expected[row : row + shape[0], column : column + shape[1], position] = False
    pattern = Block(shape=shape)
    mask = pattern.mask(torch.from_numpy(weight).float().abs(), num_blocks * pattern.unit((16, 24, 3)))
    assert torch.equal(mask, torch.from_numpy(expected))


def test_pooled_scores_are_those_of_the_blocks():
    scores = torch.tensor([[3.0, 1.0], [4.0, 1.0]])
    assert torch.allclose(Block(shape=(2, 1)).pooled(scores), torch.tensor([[12.5**0.5, 1.0], [12.5**0.5, 1.0]]))


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (nn.Linear(3, 32), None),
        (nn.Conv2d(3, 32, 3), None),
        (nn.Conv2d(16, 32, 3, groups=2), None),
        (nn.Linear(8, 10), NEEDS + "10 and 8"),
        (nn.Conv2d(16, 16, 3, groups=16), NEEDS + "1 and 1"),
        (nn.ConvTranspose2d(16, 16, 2), "block 16x1 does not serve transposed convolutions"),
    ],
)  # fmt: skip
def test_the_rule_that_failed_is_named(layer, rule):
    assert Block(shape=(16, 1)).unserved(layer) == rule


def test_input_channels_must_fill_blocks():
    assert Block(shape=(1, 4)).unserved(nn.Conv2d(6, 8, 1)) == (
        "block 1x4 needs out_channels/groups % 1 == 0 and in_channels/groups % 4 == 0, got 8 and 6"
    )
    message = r"weight: expected channels that blocks of 1x4 \(output x input\) fill, got shape \(8, 6\)"
    with pytest.raises(UnsupportedShapeError, match=message):
        Block(shape=(1, 4)).mask(torch.zeros(8, 6), 4)


@pytest.mark.parametrize("shape", [(0, 1), (16,), (2, 2, 2), (1.5, 1), None])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        Block(shape=shape)


def test_label():
    assert (Block(shape=(16, 1)).label, Block(shape=(16, 1)).fixed_sparsity) == ("block 16x1", None)
