"""What every criterion, pattern and schedule must be; a new one in a table is tested without a new test."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsedet.common.config import dump
from sparsedet.sparsity import CRITERIA, PATTERNS, SCHEDULES

PATTERN_FIELDS = {"block": {"shape": (4, 2)}}
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
    pattern = PATTERNS[name](**PATTERN_FIELDS.get(name, {}))
    assert pattern.type == name
    assert PATTERNS[name].model_validate(dump(pattern)) == pattern
    assert pattern.label
    layer = nn.Conv2d(16, 8, 3)
    assert pattern.unserved(layer) is None
    scores = layer.weight.detach().abs()
    unit = pattern.unit(tuple(scores.shape))
    count = round(scores.numel() * (pattern.fixed_sparsity or 0.3)) // unit * unit
    mask = pattern.mask(scores, count)
    assert (mask.shape, mask.dtype) == (scores.shape, torch.bool)
    assert int((~mask).sum()) == count
    assert torch.equal(mask, pattern.mask(scores.clone(), count))


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(8, 16), (8, 16, 3), (16, 32, 3, 3), (8, 16, 1, 1)]),
    seed=st.integers(0, 99),
    top=st.sampled_from([1, 2, 4, 1000]),
    parts=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_masks_have_the_asked_count_and_contain_earlier_ones(name, shape, seed, top, parts):
    """Whatever ties: scores are integers, down to all zero."""
    pattern = PATTERNS[name](**PATTERN_FIELDS.get(name, {}))
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, top, shape).astype(np.float32))
    num_units = scores.numel() // pattern.unit(shape)
    keep = torch.ones(shape, dtype=torch.bool)
    for part in parts:
        share = pattern.fixed_sparsity or int(part * num_units) / num_units
        mask = pattern.mask(torch.where(keep, scores, -1.0), round(share * scores.numel()))
        assert int((~mask).sum()) == round(share * scores.numel())
        assert not (mask & ~keep).any()
        keep = mask
    assert torch.equal(pattern.mask(torch.where(keep, scores, -1.0), int((~keep).sum())), keep)
    pooled = pattern.pooled(scores)
    torch.testing.assert_close(pattern.pooled(pooled), pooled)
    assert keep.is_contiguous()  # and no view that cannot be written to
    assert pooled.is_contiguous()
    assert float(pooled.double().square().sum()) == pytest.approx(float(scores.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule = SCHEDULES[name](**SCHEDULE_FIELDS[name])
    assert schedule.type == name
    assert SCHEDULES[name].model_validate(dump(schedule)) == schedule
    boundaries = schedule.boundaries(100)
    assert boundaries[0] == 0
    assert len(boundaries) == len(schedule.target_sparsities)
    assert schedule.restarts(100) == boundaries
    assert list(boundaries) == sorted(set(boundaries))
