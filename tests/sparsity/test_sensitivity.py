"""Curves of single weights: measured by the pruner's own masks, kept in a file, taken up again."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.errors import CheckpointError, ConfigError, SparseDetError
from sparsedet.sparsity import (
    Activation,
    Calibration,
    Global,
    Obc,
    OneShot,
    SensitivityCurves,
    Sparsifier,
    SparsityConfig,
    Targets,
    measure_sensitivity,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(10, 10), "b": nn.Linear(5, 4), "c": nn.Conv2d(1, 1, 1)})
    model.a.weight.data = torch.arange(1, 101.0).view(10, 10)
    return model


class Metric:
    """Share of weights that are not zero in a (weight 2) and b (weight 1); counts its calls."""

    def __init__(self, stop_at=None):
        self.calls = 0
        self.stop_at = stop_at

    def __call__(self, model):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        kept = [float((model[name].weight != 0).float().mean()) for name in "ab"]
        return 2 * kept[0] + kept[1]


def points(curves, name):
    return [
        (point.target_sparsity, point.measured_sparsity, pytest.approx(point.value)) for point in curves.curves[name]
    ]


def test_hand_worked(model):
    curves = measure_sensitivity(model, Metric(), Targets(exclude=("c",)), (0.5, 0.9, 1.0))
    assert curves.dense == 3
    # at most 99 % of a goes and at most 19 of the 20 of b
    assert points(curves, "a.weight") == [(0.5, 0.5, 2.0), (0.9, 0.9, 1.2), (1.0, 0.99, 1.02)]
    assert points(curves, "b.weight") == [(0.5, 0.5, 2.5), (0.9, 0.9, 2.1), (1.0, 0.95, 2.05)]
    assert curves.left_out == {"c.weight": "exclude 'c'"}


def test_masks_are_those_of_the_pruner(model):
    seen = []
    measure_sensitivity(model, lambda model: seen.append(model.b.weight == 0) or 0.0, Targets(include=("b",)), (0.3,))
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.3), targets=Targets(include=("b",)), scope="chosen", allocation=Global()
    )
    sparsifier = Sparsifier(model, config)
    sparsifier.prune_(0)
    assert not seen[0].any()  # dense
    assert torch.equal(seen[1], ~sparsifier.masks["b.weight"])


def test_a_weight_that_cannot_be_pruned_says_so(model):
    curves = measure_sensitivity(model, Metric(), Targets(include=("c", "b")), (0.5,))
    assert points(curves, "c.weight") == [(0.5, 0.0, 3.0)]  # one entry, which stays: measured sparsity 0
    assert curves.pairs == {"b.weight": [(0.5, 2.5)], "c.weight": []}  # no loss of 0 in the plot
    model.a.weight.requires_grad_(False)
    model.b.weight.data[:3] = 0
    curves = measure_sensitivity(model, Metric(), None, (0.5,))
    assert curves.left_out == {"a.weight": "frozen (requires_grad is False)"}
    assert points(curves, "b.weight") == [(0.5, 0.75, 2.25)]  # more are zero already


def test_the_model_is_what_it_was(model):
    model.b.weight.data[0, 0] = -0.0
    before = {name: value.clone().view(torch.int32) for name, value in model.state_dict().items()}
    parameters = {name: id(value) for name, value in model.named_parameters()}
    measure_sensitivity(model, Metric())
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, Metric(stop_at=2))
    assert all(torch.equal(value.view(torch.int32), before[name]) for name, value in model.state_dict().items())
    assert parameters == {name: id(value) for name, value in model.named_parameters()}


def test_an_interrupted_run_goes_on_where_it_was(model, tmp_path):
    cache = tmp_path / "out" / "sensitivity.json"
    sparsities = (0.5, 0.9)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, Metric(stop_at=4), None, sparsities, cache)
    assert {name: len(found) for name, found in SensitivityCurves.load(cache).curves.items()} == {
        "a.weight": 2, "b.weight": 1, "c.weight": 0,
    }  # fmt: skip
    metric = Metric()
    resumed = measure_sensitivity(model, metric, None, sparsities, str(cache))
    assert metric.calls == 3  # of 1 + 6
    assert resumed == measure_sensitivity(model, Metric(), None, sparsities) == SensitivityCurves.load(cache)
    extended = measure_sensitivity(model, metric, None, (0.7, 0.9), cache)
    assert metric.calls == 3 + 3
    assert [point.target_sparsity for point in extended.curves["b.weight"]] == [0.5, 0.9, 0.7]
    assert json.loads(cache.read_text())["curves"]["b.weight"][2] == {
        "target_sparsity": 0.7,
        "measured_sparsity": 0.7,
        "value": pytest.approx(2.3),
    }


def test_the_file_of_other_weights_is_refused(model, tmp_path):
    cache = tmp_path / "sensitivity.json"
    measure_sensitivity(model, Metric(), None, (0.5,), cache)
    content = cache.read_text()
    model.a.weight.data[0, 0] += 1e-6
    message = f"{cache}: expected measurements of these weights, got those of other weights or of another criterion"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        measure_sensitivity(model, Metric(), None, (0.5,), cache)
    assert cache.read_text() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a mapping of keys at the top level, got nothing"),
        ('{"format": 1, "fingerprint": "x", "den', "expected valid YAML"),
        ('{"format": 2, "fingerprint": "", "dense": 1.0, "curves": {}, "left_out": {}}', "format: expected 1, got 2"),
        ('{"format": 1, "fingerprint": "", "dense": 1.0, "left_out": {}}', "curves: expected a value, got nothing"),
        (
            '{"fingerprint": "", "dense": 1.0, "left_out": {}, "curves": {"a": [{"target_sparsity": 2, '
            '"measured_sparsity": 0.5, "value": 1.0}]}}',
            "curves.a[0].target_sparsity: expected less than or equal to 1, got 2",
        ),
    ],
)
def test_other_files_are_refused(content, message, model, tmp_path):
    cache = tmp_path / "sensitivity.json"
    cache.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        measure_sensitivity(model, Metric(), None, (0.5,), cache)
    assert cache.read_text() == content


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "much", [1.0]])
def test_metrics_without_a_number_are_refused(value, model):
    message = f"metric: expected a finite number, got {value} for the model as it is"
    with pytest.raises(ConfigError, match=re.escape(message)):
        measure_sensitivity(model, lambda model: value)
    before = model.a.weight.detach().clone()
    message = "metric: expected a finite number, got nan for 'a.weight' pruned to 0.5"
    with pytest.raises(ConfigError, match=message):
        measure_sensitivity(model, lambda model: math.nan if (model.a.weight == 0).any() else 1.0)
    assert torch.equal(model.a.weight, before)


@pytest.mark.parametrize("sparsities", [(), (0.0,), (0.5, 1.1), (-0.5,)])
def test_bad_sparsities_are_refused(sparsities, model):
    with pytest.raises(ConfigError, match=re.escape(f"sparsities: expected numbers in (0, 1], got {list(sparsities)}")):
        measure_sensitivity(model, Metric(), None, sparsities)


def test_weights_that_are_no_numbers_are_refused_by_name(model):
    model.b.weight.data[0, 0] = math.nan
    with pytest.raises(SparseDetError, match=r"b\.weight: expected finite weights"):
        measure_sensitivity(model, lambda model: 1.0, None, (0.5,))


def test_numbers_of_numpy_and_torch_are_numbers(model):
    for kind in (np.float32, torch.tensor):
        assert measure_sensitivity(model, lambda model, kind=kind: kind(0.5), None, (0.5,)).dense == 0.5


def test_other_criteria_choose_the_masks(tmp_path):
    """The large weight reads a feature that is always zero: the activation-aware criterion takes it, at no cost."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[5.0, 1.0]])
    inputs = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    calibration = Calibration([inputs], lambda model, batch: model(batch))
    cache = tmp_path / "curves.json"

    def metric(model):
        return model(inputs).sum().item()

    def value(cache=None, **arguments):
        return measure_sensitivity(model, metric, None, (0.5,), cache, **arguments).curves["weight"][0].value

    assert value() == 0
    assert value(cache, criterion=Activation(), calibration=calibration) == 3
    assert torch.equal(model.weight, torch.tensor([[5.0, 1.0]]))
    with pytest.raises(CheckpointError, match="or of another criterion"):
        value(cache)
    with pytest.raises(ConfigError, match="calibration: expected data, which the criterion 'activation' looks at"):
        value(criterion=Activation())
    message = "criterion: expected one that leaves the other weights as they are, got 'obc'. Use 'magnitude'."
    with pytest.raises(ConfigError, match=re.escape(message)):
        value(criterion=Obc(), calibration=calibration)
