"""LAMP allocation against a reference of ten lines."""

import pytest
import torch
from torch import Tensor, nn

from sparsedet.sparsity import Lamp, LevelWise, Sparsifier, SparsityConfig


def lamp_masks(weights: dict[str, Tensor], num_zeros: int) -> dict[str, Tensor]:
    """Lee et al. 2021: sort, divide by the suffix sums, one global threshold."""
    scores = {}
    for name, weight in weights.items():
        squares = weight.flatten().double().square()
        order = squares.argsort()
        suffix = squares[order].flip(0).cumsum(0).flip(0)
        scores[name] = torch.empty_like(squares).scatter_(0, order, squares[order] / suffix).view(weight.shape)
    threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values[num_zeros]
    return {name: score >= threshold for name, score in scores.items()}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_masks_are_those_of_the_reference(level, bag):
    torch.manual_seed(level)
    model = bag(a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 32, 3), c=nn.Linear(200, 30), d=nn.ConvTranspose2d(8, 4, 2))
    weights = {f"{name}.weight": module.weight.detach().clone() for name, module in model.named_children()}
    levels = (0.3, 0.8, 0.95)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=levels), allocation=Lamp()))
    sparsifier.prune_(level)
    expected = lamp_masks(weights, round(levels[level] * sum(weight.numel() for weight in weights.values())))
    assert all(torch.equal(sparsifier.masks[name], expected[name]) for name in weights)


def test_equal_weights_go_one_by_one_as_in_the_paper(bag):
    # scores of four equal weights: 1/4, 1/3, 1/2, 1; of (1, 2): 1/5, 1. Order: b0, a0, a1, a2.
    model = bag(a=nn.Linear(4, 1), b=nn.Linear(2, 1))
    model.a.weight.data.fill_(7.0)
    model.b.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(1 / 6, 2 / 6, 3 / 6, 4 / 6))))
    assert [list(row.values()) for row in sparsifier.allocate_levels()] == [
        [0, 0.5],
        [0.25, 0.5],
        [0.5, 0.5],
        [0.75, 0.5],
    ]
