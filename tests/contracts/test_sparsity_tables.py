"""What every criterion, pattern and schedule must be; a new one in a table is tested without a new test."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsedet.common.config import dump
from sparsedet.common.errors import SparseDetError
from sparsedet.sparsity import (
    CRITERIA,
    NM,
    PATTERNS,
    SCHEDULES,
    Calibration,
    LevelWise,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Uniform,
    Unstructured,
    check_n_m,
)
from sparsedet.sparsity.weights import find_weights

PATTERN_FIELDS = {"block": {"shape": (4, 2)}}
SCHEDULE_FIELDS = {
    "level_wise": {"levels": (0.5, 0.75)},
    "one_shot": {"sparsity": 0.5},
    "cubic": {"sparsity": 0.5, "initial": 0.1, "first": 0.1},
    "dynamic": {"sparsity": 0.5},
}


def calibration_of(inputs):
    return Calibration(
        [inputs], lambda model, batch: model(batch), lambda model, batch: model(batch).float().square().sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(name, dtype):
    """A convolution with groups and a linear layer: scores, the same each time, that leave the model as it was."""
    criterion = CRITERIA[name]()
    assert criterion.type == name
    assert CRITERIA[name].model_validate(dump(criterion)) == criterion
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    calibration = calibration_of(torch.randn(4, 8, 4, 4, dtype=dtype))
    weights = find_weights(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    criterion.check(weights, calibration)
    all_scores = []
    for _ in range(2):
        statistics = criterion.statistics(model, weights, calibration)
        all_scores.append([criterion.scores(w.tensor, w.name, statistics.get(w.name)) for w in weights])
    for weight, scores, again in zip(weights, *all_scores, strict=True):
        assert (scores.shape, scores.dtype, scores.requires_grad) == (weight.tensor.shape, torch.float32, False)
        assert (scores >= 0).all()
        assert len(scores.unique()) > scores.numel() / 10
        assert torch.equal(scores, again)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("pattern", [Unstructured(), NM(eligibility="divisible")])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_prunes_the_asked_count_at_every_level(name, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 4))
    calibration = calibration_of(torch.randn(16, 8, 4, 4))
    is_free = pattern.fixed_sparsity is None
    config = SparsityConfig(
        schedule=LevelWise(levels=(0.25, 0.5, 0.75) if is_free else (0.5,)), pattern=pattern, criterion=CRITERIA[name]()
    )
    sparsifier = Sparsifier(model, config, calibration=calibration)
    zeros = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in model.named_parameters()}
    for level, target in enumerate(sparsifier.target_sparsities):
        expected = sparsifier.allocate(level)
        sparsifier.prune_(level)
        assert sparsifier.measure().measured_sparsity == target
        for layer in sparsifier.measure().layers:
            weight = model.get_parameter(layer.name)
            assert layer.sparsity == expected[layer.name]
            assert torch.equal(weight != 0, sparsifier.masks[layer.name])
            assert not (zeros[layer.name] & (weight != 0)).any()  # what went stays away
            zeros[layer.name] = weight == 0
            assert is_free or check_n_m(weight, 2, 4) == 0


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_refuse_weights_that_are_not_finite(name, value):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[0].bias.data[2] = -100  # the layer reads zero there
    model[2].weight.data[1, 2] = value
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=CRITERIA[name](), allocation=Uniform())
    sparsifier = Sparsifier(model, config, calibration=calibration_of(torch.randn(8, 4)))
    with pytest.raises(SparseDetError, match="finite"):
        sparsifier.prune_(0)
    assert sparsifier.masks == {}


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


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(total_steps=st.integers(2, 60), interval=st.integers(1, 70))
def test_changes_of_masks(name, total_steps, interval):
    schedule = SCHEDULES[name](**SCHEDULE_FIELDS[name])
    changes = [schedule.change(step, total_steps, interval) for step in range(total_steps)]
    for step, change in enumerate(changes):
        assert change.step <= step
        assert changes[change.step] == change
        assert change == changes[step - 1] or change.step == step
        assert 0 <= change.swap <= 1
        assert (change.swap == 0) or schedule.grows
    assert changes[0].step == 0
    targets = [change.target for change in changes]
    assert targets == sorted(targets)
    assert targets[-1] == schedule.target_sparsities[-1]
    assert set(schedule.boundaries(total_steps)) <= {change.step for change in changes}
    assert changes[-1].level == len(schedule.target_sparsities) - 1
