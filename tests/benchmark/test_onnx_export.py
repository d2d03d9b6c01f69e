"""From checkpoints of tiny detectors to ONNX files and what is said of them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark import onnx_compare
from sparsedet.benchmark.onnx_export import OnnxOptions, export_checkpoint, parse_shape
from sparsedet.benchmark.recipe import Recipe
from sparsedet.common.checkpoint import save_checkpoint
from sparsedet.common.config import dump
from sparsedet.common.errors import CheckpointError, ConfigError, MissingExtraError, StorageError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.digit_scenes import make_digit_scenes
from sparsedet.detection.models import FasterRCNNConfig, FPNConfig, ResNetConfig, RetinaHeadConfig, RetinaNetConfig
from sparsedet.detection.optimization import TrainingConfig
from sparsedet.export.onnx_run import OnnxRunner
from sparsedet.sparsity import Sparsifier, SparsityConfig

pytest.importorskip("onnx")

DETECTORS = {
    "one stage": RetinaNetConfig(
        backbone=ResNetConfig(width=16, levels=(3, 4)),
        neck=FPNConfig(channels=16, num_levels=2),
        head=RetinaHeadConfig(num_convs=1, iou_branch=True, class_major=True),
        legacy_boxes=True,
    ),
    "two stages": FasterRCNNConfig(
        backbone=ResNetConfig(width=16, levels=(3, 4)),
        neck=FPNConfig(channels=16, num_levels=3, extra="pool", norm="none"),
        rpn={"test_proposals": 60},
        roi_head={"channels": 16, "num_levels": 2},
    ),
}
PRUNINGS = {
    "one stage": {"schedule": {"type": "one_shot", "sparsity": 0.8}, "targets": {"exclude": ["preset:stem"]}},
    "two stages": {"schedule": {"type": "one_shot"}, "pattern": {"type": "n_m"}},
}


def write_checkpoint(path, name, root):
    """Write a checkpoint of a pruned detector whose predictors give all kinds of boxes."""
    torch.manual_seed(0)
    detector = DETECTORS[name].build(2)
    for part, layer in detector.named_modules():
        if part.endswith(("cls_pred", "box_pred", "iou_pred")):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.normal_(layer.bias, std=0.5)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 1)
    config = SparsityConfig.model_validate(PRUNINGS[name], strict=False)
    recipe = Recipe(
        data=DataConfig(root=root),
        detector=DETECTORS[name],
        training=TrainingConfig(steps=7, batch_size=2),
        sparsity=config,
    )
    sparsifier = Sparsifier(detector, config)
    sparsifier.before_step(0, total_steps=7)
    content = {
        "experiment": "small",
        "recipe": json.dumps(dump(recipe)),
        "categories": [[3, "bright"], [7, "dark"]],
        "level": 0,
        "step": 7,
        "metrics": {"ap": 0.5},
        "model": detector.state_dict(),
        "sparsifier": {"masks": sparsifier.state_dict()["masks"]},
        "trainer": {},
    }
    save_checkpoint(path, content)
    return path


CASES = {
    "raw": ("one stage", OnnxOptions()),
    "boxes fp16": ("one stage", OnnxOptions(post_processing=True, fp16=True, slim=False)),
    "two stages raw": ("two stages", OnnxOptions(input_shape=(1, 3, 96, 128), keep_batch_norm=True)),
    "two stages boxes": ("two stages", OnnxOptions(post_processing=True)),
}


@pytest.fixture(scope="module")
def checkpoints(tiny_data, tmp_path_factory):
    """Path of a checkpoint for each kind of detector."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(folder / f"{name}.pt", name, tiny_data) for name in DETECTORS}


SLOW = pytest.mark.slow
PARAMS = [pytest.param(case, marks=SLOW if case.startswith("two") else ()) for case in CASES]


@pytest.fixture(scope="module", params=PARAMS)
def exported(request, checkpoints, tmp_path_factory):
    """Name of a case and what its export returned."""
    name, options = CASES[request.param]
    return request.param, export_checkpoint(checkpoints[name], tmp_path_factory.mktemp("onnx") / "d.onnx", options)


def test_zeros_and_values_hold(exported):
    case, result = exported
    check = result.about["check"]
    assert result.faults == ()
    assert result.summary[-1] == "verified: all zeros of the model are in the file"
    assert check["images"] == "the validation images val_0.png, val_1.png"
    assert check["shapes"] == ((2, 3, 64, 64), (1, 3, 80, 96))
    assert all(difference < 2e-5 for difference in check["relative_difference"].values())
    if case != "raw":
        assert check["num_boxes"] > 20
        assert check["unmatched"] < (0.1 if "fp16" in case else 1e-3)
        assert check["box_difference_px"] < (2 if "fp16" in case else 0.01)


def test_every_weight_is_in_the_file(exported, checkpoints):
    case, result = exported
    content = torch.load(checkpoints[CASES[case][0]], weights_only=True)
    weights = {row["name"]: row for row in result.about["weights"]}
    for name, mask in content["sparsifier"]["masks"].items():
        assert weights[name]["is_pruned"]
        assert weights[name]["num_zeros"] == int((content["model"][name] == 0).sum()) >= int((~mask).sum())
    assert all(row["tensors"] and row["num_lost_zeros"] == 0 for row in weights.values())
    total = sum(row["num_weights"] for row in weights.values())
    assert result.about["sparsity"]["all"] == pytest.approx(sum(row["num_zeros"] for row in weights.values()) / total)
    if case == "raw":  # one norm for each level is folded into a copy of its own
        assert len(weights["head.cls_tower.convs.0.weight"]["tensors"]) == 2
        assert len(weights["head.cls_pred.weight"]["tensors"]) == 1
        assert not weights["backbone.conv1.weight"]["is_pruned"]


def test_the_file_beside_it_says_how_to_use_it(exported, checkpoints):
    case, result = exported
    about = json.loads(result.path.with_suffix(".json").read_text())
    assert about == json.loads(json.dumps(result.about))
    name, options = CASES[case]
    assert about["format_version"] == 1
    assert about["checkpoint_sha256"] == hashlib.sha256(checkpoints[name].read_bytes()).hexdigest()
    assert about["file_sha256"] == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert about["num_bytes"] == result.path.stat().st_size
    assert about["classes"] == [{"label": 0, "id": 3, "name": "bright"}, {"label": 1, "id": 7, "name": "dark"}]
    assert about["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert about["preprocessing"]["pad_multiple"] == 16
    assert about["thresholds"]["nms_iou"] == 0.5
    assert about["inputs"][0] == {"name": "images", "shape": ["batch", 3, "height", "width"]}
    assert [entry["name"] for entry in about["inputs"][1:]] == ([] if case == "raw" else ["image_sizes"])
    names = {entry["name"]: entry["shape"] for entry in about["outputs"]}
    if options.post_processing:
        assert names == {"boxes": ["batch", 100, 4], "scores": ["batch", 100], "labels": ["batch", 100]}
    assert about["opset"] >= 18
    assert about["macs"]["input_shape"] == list(options.input_shape or (1, 3, 64, 64))
    assert 0 < about["macs"]["kept"] < 1
    assert about["n_m"]["is_valid"] == (name == "two stages")
    assert about["sparsity"]["pattern"] == ("2:4" if name == "two stages" else "unstructured")
    assert "weights" not in about["detector"]["backbone"]
    assert sorted(path.name for path in result.path.parent.iterdir()) == ["d.json", "d.onnx"]


def test_a_single_image_of_any_size(exported):
    _, result = exported
    inputs = (torch.randn(1, 3, 80, 48), torch.tensor([[70, 48]]))[: len(result.about["inputs"])]
    outputs = OnnxRunner(result.path)(inputs)
    assert list(outputs) == [entry["name"] for entry in result.about["outputs"]]
    assert all(output.isfinite().all() for output in outputs.values())


def test_faults_and_random_images_where_the_data_are_not_there(checkpoints, tmp_path, monkeypatch):
    content = torch.load(checkpoints["one stage"], weights_only=True)
    name = "head.cls_pred.weight"
    pruned = (~content["sparsifier"]["masks"][name]).nonzero()[0]
    content["model"][name][tuple(pruned)] = 1.0  # a zero that the masks promise
    torch.save(content, tmp_path / "bad.pt")
    monkeypatch.setattr(onnx_compare, "TOLERANCES", {False: (-1.0, -1.0)})
    options = OnnxOptions(input_shape=(1, 3, 96, 64))
    result = export_checkpoint(tmp_path / "bad.pt", tmp_path / "d.onnx", options, ("data.root=nowhere",))
    assert result.about["check"]["images"] == "random images, as the data are not there"
    assert result.about["check"]["shapes"][0] == (2, 3, 96, 64)
    assert f"{name}: expected zeros where the model has them, got other values at 1 places" in result.faults[0]
    assert "cls_logits_3: expected PyTorch's values within -1 of the largest" in result.faults[1]
    assert result.summary[-2:] == tuple(f"fault: {fault}" for fault in result.faults)
    assert json.loads((tmp_path / "d.json").read_text())["faults"] == list(result.faults)


@pytest.mark.slow
def test_on_the_images_of_the_demo(checkpoints, tmp_path):
    root = make_digit_scenes(tmp_path / "data")
    options = OnnxOptions(post_processing=True)
    result = export_checkpoint(checkpoints["one stage"], tmp_path / "d.onnx", options, (f"data.root={root}",))
    check = result.about["check"]
    assert result.faults == ()
    assert check["images"].startswith("the validation images ")
    assert check["num_boxes"] > 20
    assert check["unmatched"] < 0.02  # the detector is not trained: two of its scores are equal to the last digit
    assert check["box_difference_px"] < 0.01


def test_bad_arguments(checkpoints, tmp_path, monkeypatch):
    checkpoint = checkpoints["one stage"]
    with pytest.raises(ConfigError, match=r"output: expected a file name that ends in \.onnx, got 'd\.pb'"):
        export_checkpoint(checkpoint, Path("d.pb"))
    (tmp_path / "d.json").write_text("mine")
    with pytest.raises(StorageError, match=r"d\.json: expected a new file, got one that exists"):
        export_checkpoint(checkpoint, tmp_path / "d.onnx")
    with pytest.raises(CheckpointError, match="expected a checkpoint file, got nothing"):
        export_checkpoint(tmp_path / "none.pt", tmp_path / "e.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsedet\[onnx\]'"):
        export_checkpoint(checkpoint, tmp_path / "e.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.json"]
    assert (tmp_path / "d.json").read_text() == "mine"


def test_shapes():
    assert parse_shape("2,3,480,640") == (2, 3, 480, 640)
    for text in ("3,480,640", "1,1,480,640", "1,3,0,640", "1,3,a,640", "1,3,-8,640", ""):
        with pytest.raises(ConfigError, match=r"--input-shape: expected B,3,H,W, got "):
            parse_shape(text)
