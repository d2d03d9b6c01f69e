"""Random criterion."""

import torch
from torch import nn

from sparsedet.sparsity import OneShot, Random, Sparsifier, SparsityConfig, Uniform


def test_scores_depend_on_name_and_seed_alone():
    weight = torch.randn(50, 40)
    scores = Random().scores(weight, "a")
    torch.rand(3)
    assert torch.equal(scores, Random().scores(-weight, "a"))
    assert not torch.equal(scores, Random().scores(weight, "b"))
    assert not torch.equal(scores, Random(seed=1).scores(weight, "a"))
    assert 0 < scores.min() < 0.01 < 0.99 < scores.max() <= 1
    assert abs(scores.mean() - 0.5) < 0.02  # standard error 0.0065
    assert abs(scores.square().mean() - 1 / 3) < 0.03  # of the uniform distribution


def test_masks_are_random_but_have_the_asked_count():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    before = model[0].weight.detach().clone()
    Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Uniform(), criterion=Random())).prune_(
        0
    )
    gone = model[0].weight == 0
    assert int(gone.sum()) == 300
    assert before[gone].abs().mean() > 0.9 * before.abs().mean()  # not the small ones
