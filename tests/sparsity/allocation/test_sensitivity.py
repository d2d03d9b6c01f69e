"""Sensitivity allocation: equal loss everywhere, by hand-worked curves."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.config import dump
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import OneShot, Sensitivity, SensitivityCurves, Sparsifier, SparsityConfig, measure_sensitivity
from sparsedet.sparsity.allocation.selection import ScoredTensor, select_counts


def curve(*pairs):
    """(sparsity, metric) …"""
    return [{"target_sparsity": at, "measured_sparsity": at, "value": value} for at, value in pairs]


def make(**curves):
    return SensitivityCurves(fingerprint="", dense=10.0, curves=curves, left_out={})


def counts(curves, target, sizes):
    scores = {name: np.arange(1, size + 1, dtype=np.float32) for name, size in sizes.items()}
    tensors = [ScoredTensor(name, (size,), lambda name=name: scores[name]) for name, size in sizes.items()]
    return select_counts(Sensitivity(curves=curves), tensors, [target])[0]


@pytest.mark.parametrize(
    ("curves", "target", "expected"),
    [
        # loss 2 s and 8 s: equal where a goes four times as far
        ({"a": curve((0.9, 8.2)), "b": curve((0.9, 2.8))}, 50, [40, 10]),
        # b loses nothing up to one half; then both rise by 1 every tenth: a 25, b 75
        ({"a": curve((0.8, 2.0)), "b": curve((0.5, 10.0), (0.9, 6.0))}, 100, [25, 75]),
        # without any loss: the same share of both, though a comes first
        ({"a": curve((0.9, 10.0)), "b": curve((0.9, 11.0))}, 60, [30, 30]),
        # a measured gain is no loss, and a curve does not fall again
        ({"a": curve((0.4, 12.0), (0.8, 6.0)), "b": curve((0.4, 6.0), (0.8, 9.0))}, 80, [60, 20]),
        # of two values at the same sparsity the worse counts
        ({"a": curve((0.9, 8.2), (0.9, 9.9)), "b": curve((0.9, 9.0), (0.9, 2.8))}, 50, [40, 10]),
        # points may come in any order
        ({"a": curve((0.8, 2.0)), "b": curve((0.9, 6.0), (0.5, 10.0))}, 100, [25, 75]),
        # of a nothing was measured beyond one half: that goes last, whatever b costs
        ({"a": curve((0.5, 9.0)), "b": curve((0.9, 0.0))}, 140, [50, 90]),
        ({"a": curve((0.5, 9.0)), "b": curve((0.9, 0.0))}, 150, [60, 90]),
    ],
)
def test_hand_worked(curves, target, expected):
    assert counts(make(**curves), target, {"a": 100, "b": 100}) == expected


def test_a_weight_without_a_curve_is_refused():
    message = "sparsity.allocation.curves: expected a curve for 'b', got none. Measure it with measure_sensitivity"
    for curves in ({"a": curve((0.5, 1.0))}, {"a": curve((0.5, 1.0)), "b": []}):
        with pytest.raises(ConfigError, match=message):
            counts(make(**curves), 5, {"a": 10, "b": 10})


def test_curves_are_measured_saved_and_used(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    inputs = torch.randn(64, 8)
    outputs = model(inputs).detach()

    @torch.no_grad()
    def metric(model):
        return -float((model(inputs) - outputs).square().mean())

    path = tmp_path / "sensitivity.json"
    measure_sensitivity(model, metric, cache=path)
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation={"type": "sensitivity", "curves": str(path)})
    path.unlink()  # its content is part of the configuration now
    assert SparsityConfig.model_validate(dump(config)) == config
    sparsifier = Sparsifier(model, config)
    allocated = sparsifier.allocate(0)
    sparsifier.prune_(0)
    assert sum(int((~mask).sum()) for mask in sparsifier.masks.values()) == round(0.5 * (8 * 32 + 32 * 32 + 32))
    losses = [np.interp(share, *config.allocation.curves.losses(name)) for name, share in allocated.items()]
    assert max(losses) - min(losses) < 0.1 * config.allocation.curves.largest_loss  # equal but for whole weights


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"nowhere.json: expected a readable YAML file"):
        Sensitivity(curves="nowhere.json")
