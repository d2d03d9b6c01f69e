"""Files as United-Perception writes them, made here with its key names."""

import json
import re
from pathlib import Path

import pytest
import torch

from sparsedet.benchmark.upstream.checkpoint import upstream_state
from sparsedet.benchmark.weights import load_state
from sparsedet.common.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
PATH = Path("up.pth")
FORMS = {
    "model": lambda state: {"model": state, "epoch": 12, "iter": 100, "optimizer": {"state": {}}, "metric_val": 0.4},
    "state_dict": lambda state: {"state_dict": state, "ema": {}},
    "bare": lambda state: state,
    "distributed": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "old": lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    "averaged": lambda state: {
        "model": {key: value + 1 for key, value in state.items()},
        "ema": {"ema_state_dict": {f"module.{key}": value for key, value in state.items()}, "decay": 0.99},
    },
    "distributed sparse run": lambda state: {
        "model": {
            ("module.bbox_head." if key.startswith("bbox_head.") else "module.backbone_neck_roi_head.") + key: value
            for key, value in state.items()
        }
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4"])
def test_every_form_of_file_gives_the_same_weights(name, form, small_detectors, build, upstream, assert_same):
    source, model = build(small_detectors[name], 0), build(small_detectors[name], 1)
    content = FORMS[form](upstream(source))
    report = load_state(model, upstream_state(content, model, PATH), PATH, max_missing=0)
    assert_same(model, source)
    num_left_out = sum(key.endswith("num_batches_tracked") for key in source.state_dict()) if form == "old" else 0
    assert len(report.loaded) == len(source.state_dict()) - num_left_out
    assert (report.missing, report.unexpected, report.missing_share) == ((), (), 0)


def test_any_copy_of_a_shared_convolution_will_do_but_they_must_agree(small_detectors, build, upstream, assert_same):
    source, model = build(small_detectors["C2"], 0), build(small_detectors["C2"], 1)
    state = upstream(source)
    only_last = {key: value for key, value in state.items() if not re.search(r"subnet\.[0-3]\.\d\.0\.", key)}
    load_state(model, upstream_state(only_last, model, PATH), PATH, max_missing=0)
    assert_same(model, source)
    state["roi_head.cls_subnet.3.1.0.weight"] = state["roi_head.cls_subnet.3.1.0.weight"] + 1
    message = "got different values in 'roi_head.cls_subnet.0.1.0.weight' and 'roi_head.cls_subnet.3.1.0.weight'"
    with pytest.raises(CheckpointError, match=message):
        upstream_state(state, model, PATH)


@pytest.mark.parametrize(
    ("name", "golden"), [("C2", "retinanet_r18_improve"), ("C4", "faster_rcnn_r50_fpn")], ids=["C2", "C4"]
)
def test_what_sparse_runs_add_is_listed_and_what_tracing_loses_is_not_missed(
    name, golden, small_detectors, build, upstream, assert_same
):
    names = json.loads((GOLDEN / "golden_sparse_names.json").read_text())
    source, model = build(small_detectors[name], 0), build(small_detectors[name], 1)
    state = FORMS["distributed sparse run"](upstream(source))["model"]
    added = [f"module.{key}" for key in names[f"{golden}_ampere"]["new_buffers"]]
    for part, keys in names[f"{golden}_amba:DefaultFakeSparse"].items():
        for key in keys["lost_keys"]:
            del state[f"module.{part}.{key}"]
        added += [f"module.{part}.{key}" for key in keys["new_keys"]]
    state |= dict.fromkeys(added, torch.ones(1))
    report = load_state(model, upstream_state({"model": state}, model, PATH), PATH, max_missing=0)
    assert_same(model, source)
    assert len(report.unexpected) == len(added)
    assert any(key.endswith("__weight_mma_mask") for key in report.unexpected)
    assert any(key.startswith("_tensor_constant") for key in report.unexpected)


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("names", ["torchvision", "United-Perception"])
def test_a_bare_backbone_is_known_by_its_names(prefix, names, small_detectors, build, upstream, assert_same):
    source, model = build(small_detectors["C2"], 0), build(small_detectors["C2"], 1)
    state = source.backbone.state_dict()
    if names == "United-Perception":
        state = {key[9:]: value for key, value in upstream(source).items() if key.startswith("backbone.")}
        assert "layer0.0.weight" in state
    state = {f"{prefix}{key}": value for key, value in state.items()}
    state["fc.weight"] = torch.zeros(10, 4)
    with pytest.raises(CheckpointError, match=r"'neck.lateral.3.conv.weight' is missing"):
        load_state(model, upstream_state(state, model, PATH), PATH, max_missing=0)
    report = load_state(model, upstream_state(state, model, PATH), PATH, max_missing=0.99)
    assert_same(model.backbone, source.backbone)
    assert report.unexpected == ("fc.weight",)
    values = {key: value.numel() for key, value in model.state_dict().items()}
    fresh = sum(count for key, count in values.items() if not key.startswith("backbone.") and "tracked" not in key)
    assert report.missing_share == pytest.approx(fresh / sum(values.values()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": 3}}, r"up.pth: expected a checkpoint of sparsedet or United-Perception, or a state dict"),
        ({}, r"expected a checkpoint of sparsedet or United-Perception"),
        ([torch.zeros(1)], r"expected a checkpoint of sparsedet or United-Perception"),
    ],
)
def test_other_content(content, message, small_detectors, build):
    with pytest.raises(CheckpointError, match=message):
        upstream_state(content, build(small_detectors["C2"], 0), PATH)


def test_our_own_names_are_known_too(small_detectors, build, assert_same):
    source, model = build(small_detectors["C2"], 0), build(small_detectors["C2"], 1)
    load_state(model, upstream_state(source.state_dict(), model, PATH), PATH, max_missing=0)
    assert_same(model, source)


def test_half_of_a_file(small_detectors, build, upstream):
    state = upstream(build(small_detectors["C2"], 1))
    half = dict(list(state.items())[: len(state) // 2])
    model = build(small_detectors["C2"], 0)
    with pytest.raises(CheckpointError, match=r"is missing; .* is missing; .* is missing and \d+ more"):
        load_state(model, upstream_state(half, model, PATH), PATH, max_missing=0)
