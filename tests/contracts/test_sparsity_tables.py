"""What every criterion, pattern and schedule must be; a new one in a table is tested without a new test."""

import pytest
import torch
from torch import nn

from sparsedet.common.config import dump
from sparsedet.sparsity import CRITERIA, PATTERNS, SCHEDULES

SCHEDULE_FIELDS = {"level_wise": {"levels": (0.5, 0.75)}, "one_shot": {"sparsity": 0.5}}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(name):
    criterion = CRITERIA[name]()
    assert criterion.type == name
    weight = torch.randn(4, 8, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    scores = criterion.scores(weight)
    assert (scores.shape, scores.dtype, scores.requires_grad) == (weight.shape, torch.float32, False)
    assert (scores >= 0).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name):
    pattern = PATTERNS[name]()
    assert pattern.type == name
    assert PATTERNS[name].model_validate(dump(pattern)) == pattern
    assert pattern.label
    layer = nn.Conv2d(16, 8, 3)
    assert pattern.unserved(layer) is None
    scores = layer.weight.detach().abs()
    count = round(scores.numel() * (pattern.fixed_sparsity or 0.3))
    mask = pattern.mask(scores, count)
    assert (mask.shape, mask.dtype) == (scores.shape, torch.bool)
    assert int((~mask).sum()) == count
    assert torch.equal(mask, pattern.mask(scores.clone(), count))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule = SCHEDULES[name](**SCHEDULE_FIELDS[name])
    assert schedule.type == name
    assert SCHEDULES[name].model_validate(dump(schedule)) == schedule
    boundaries = schedule.boundaries(100)
    assert boundaries[0] == 0
    assert len(boundaries) == len(schedule.target_sparsities)
    assert list(boundaries) == sorted(set(boundaries))
