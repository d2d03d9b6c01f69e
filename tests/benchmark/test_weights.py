"""Which weights are loaded, left out or refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.weights import load_state
from sparsedet.common.errors import CheckpointError
from sparsedet.detection.models.anchors import Anchors

PATH = Path("c.pth")


def layers():
    return nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(2), "c": nn.Linear(2, 1)})  # 8 + 9 + 3 values


def test_everything_is_loaded_and_the_count_of_batches_may_be_missing():
    source, model = layers(), layers()
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    for max_missing in (None, 0.0):
        report = load_state(model, state, PATH, max_missing)
        assert torch.equal(model["a"].weight, source["a"].weight)
        assert (report.loaded, report.missing, report.reinitialised) == (tuple(state), (), ())
        assert (report.unexpected, report.missing_share) == ((), 0)


def test_what_is_missing_or_of_another_shape_stays_as_it_was_and_is_counted():
    source, model = layers(), layers()
    state = source.state_dict() | {"c.weight": torch.zeros(5, 2), "d": torch.zeros(9)}
    del state["a.bias"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        load_state(model, state, PATH, max_missing=0.1999)
    assert str(refused.value) == (
        "c.pth: expected the weights of this detector, got another model's: 'a.bias' is missing; 'c.weight' has shape "
        "(5, 2) instead of (1, 2). Use the recipe and the classes it was trained with, or another checkpoint; or set "
        "max_missing to 0.2 or more to start afresh there."
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = load_state(model, state, PATH, max_missing=0.2)
    assert report.missing_share == 4 / 20
    after = model.state_dict()
    kept = {"a.bias", "c.weight"}
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in kept else state[key]), key
    assert list(report.lines()) == [
        "7 loaded, 1 missing, 1 reinitialised, 1 unexpected (20.00% of the values keep their fresh initialisation)",
        "missing: a.bias",
        "reinitialised: c.weight",
        "unexpected: d",
    ]


def test_only_the_first_names_are_told():
    report = load_state(layers(), {}, PATH, max_missing=1)
    assert list(report.lines())[1] == "missing: a.weight, a.bias, b.weight and 5 more"


def test_the_share_to_allow_is_rounded_up():
    model = nn.ModuleDict({"a": nn.Linear(300, 100), "b": nn.Linear(1, 1, bias=False)})
    state = model.state_dict()
    del state["b.weight"]
    with pytest.raises(CheckpointError, match=r"set max_missing to 0\.0001 or more"):
        load_state(model, state, PATH, max_missing=0)
    load_state(model, state, PATH, max_missing=0.0001)


def test_a_checkpoint_of_the_same_recipe_must_have_the_same_entries():
    model = layers()
    state = model.state_dict()
    with pytest.raises(CheckpointError, match=r"'d' is not part of it\. Use the recipe .*, or another checkpoint\.$"):
        load_state(model, state | {"d": torch.zeros(1)}, PATH)
    del state["c.bias"]
    with pytest.raises(CheckpointError, match=r"'c\.bias' is missing\. Use the recipe .*, or another checkpoint\.$"):
        load_state(model, state, PATH)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_before_anything_is_loaded(value):
    source, model = layers(), layers()
    before = model["a"].weight.clone()
    state = source.state_dict()
    state["c.weight"][0, 1] = value
    with pytest.raises(CheckpointError, match=r"c\.pth: expected finite weights, got NaN or infinity in 'c\.weight'"):
        load_state(model, state, PATH, max_missing=0)
    assert torch.equal(model["a"].weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn, torch.complex64])
def test_a_counter_is_no_other_number(dtype):
    state = layers().state_dict()
    name = next(key for key in state if key.endswith("num_batches_tracked"))
    state[name] = torch.zeros((), dtype=dtype)
    with pytest.raises(CheckpointError, match=rf"c\.pth: expected numbers like torch\.int64 in '{name}', got {dtype}"):
        load_state(layers(), state, PATH)


@pytest.mark.parametrize(
    ("name", "predictor", "num_fresh"),
    [("C2", "head.cls_pred", 4 * 145), ("C3", "head.cls_pred", 4 * 145), ("C4", "box_head.cls_pred", 15 * 17)],
)
def test_another_number_of_classes(name, predictor, num_fresh, small_detectors, build):
    source, model = build(small_detectors[name], 0, num_classes=80), build(small_detectors[name], 1)
    fresh = model.get_submodule(predictor).weight.clone()
    with pytest.raises(CheckpointError) as refused:
        load_state(model, source.state_dict(), PATH, max_missing=0)
    assert f"got another model's: '{predictor}' is for 80 classes instead of 2; " in str(refused.value)
    share = num_fresh / sum(value.numel() for value in model.state_dict().values())
    with pytest.raises(CheckpointError):
        load_state(model, source.state_dict(), PATH, max_missing=share * 0.999)
    report = load_state(model, source.state_dict(), PATH, max_missing=share * 1.001)
    assert report.reinitialised[:2] == (f"{predictor}.weight", f"{predictor}.bias")
    assert torch.equal(model.get_submodule(predictor).weight, fresh)
    assert torch.equal(model.neck.output["3"].conv.weight, source.neck.output["3"].conv.weight)


def test_other_anchors_are_not_taken_for_other_classes(small_detectors, build):
    fewer = small_detectors["C2"].model_copy(update={"anchors": Anchors(scales=(4.0,))})
    with pytest.raises(CheckpointError) as refused:
        load_state(build(fewer, 0), build(small_detectors["C2"], 1).state_dict(), PATH, max_missing=0)
    assert "'head.cls_pred.weight' has shape (4, 16, 3, 3) instead of (2, 16, 3, 3)" in str(refused.value)
    assert "classes instead" not in str(refused.value)
