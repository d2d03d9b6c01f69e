"""The weights that a run starts from: files of sparsedet and of others."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from sparsedet.benchmark.checkpoint import build_detector, open_checkpoint
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.detection.data.coco import Category

SPARSE = {"schedule": {"type": "level_wise", "levels": (0.5, 0.8)}}


@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4"])
def test_a_run_starts_from_a_checkpoint_of_either_program(
    name, small_detectors, recipe_of, build, save, upstream, assert_same, categories, tmp_path
):
    source = build(small_detectors[name], 0)
    save(tmp_path / "dense" / "ours.pt", recipe_of(small_detectors[name]), source)
    torch.save({"model": upstream(source), "epoch": 3}, tmp_path / "theirs.pth")
    for file, words in (("dense/ours.pt", "small/dense"), ("theirs.pth", "theirs.pth")):
        recipe = recipe_of(small_detectors[name], initial_checkpoint=tmp_path / file, sparsity=SPARSE)
        model, lines = build_detector(recipe, categories)
        assert_same(model, source)
        counts = f"{len(source.state_dict())} loaded, 0 missing, 0 reinitialised, 0 unexpected"
        assert lines == (words, f"{counts} (0.00% of the values keep their fresh initialisation)")
    assert_same(open_checkpoint(tmp_path / "dense" / "ours.pt").model, source)


def test_without_a_checkpoint_the_detector_says_what_it_starts_from(small_detectors, recipe_of, categories):
    assert build_detector(recipe_of(small_detectors["C2"]), categories)[1] == ("from scratch",)


def test_other_classes(small_detectors, recipe_of, build, save, categories, tmp_path):
    detector, path = small_detectors["C2"], tmp_path / "ours.pt"
    three = (*categories, Category(id=9, name="grey"))
    save(path, recipe_of(detector), build(detector, 0, num_classes=3), three)
    with pytest.raises(CheckpointError, match=r"'head\.cls_pred' is for 3 classes instead of 2; .* or set max_missing"):
        build_detector(recipe_of(detector, initial_checkpoint=path), categories)
    _, lines = build_detector(recipe_of(detector, initial_checkpoint=path, max_missing=0.01), categories)
    assert lines[2] == "reinitialised: head.cls_pred.weight, head.cls_pred.bias"
    others = (categories[0], Category(id=7, name="gloomy"))
    save(path, recipe_of(detector), build(detector, 0), others)
    with pytest.raises(
        CheckpointError,
        match=r"expected a detector of the 2 classes \['bright', 'dark'\], got one of the 2 classes \['bright', 'gl",
    ):
        build_detector(recipe_of(detector, initial_checkpoint=path, max_missing=0.01), categories)


def test_a_checkpoint_of_another_network_may_give_what_fits(
    small_detectors, recipe_of, build, save, categories, tmp_path
):
    source = build(small_detectors["C2"], 0)
    save(tmp_path / "ours.pt", recipe_of(small_detectors["C2"]), source)
    fields = {"initial_checkpoint": tmp_path / "ours.pt"}
    with pytest.raises(
        CheckpointError, match=r"'head\.iou_pred\.weight' is missing; 'head\.iou_pred\.bias' is missing\."
    ):
        build_detector(recipe_of(small_detectors["C3"], **fields), categories)
    model, lines = build_detector(recipe_of(small_detectors["C3"], max_missing=0.01, **fields), categories)
    assert torch.equal(model.head.box_pred.weight, source.head.box_pred.weight)
    assert lines[2] == "missing: head.iou_pred.weight, head.iou_pred.bias"


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_file_is_executed(small_detectors, recipe_of, upstream, build, categories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(small_detectors["C2"], initial_checkpoint="theirs.pth")
    content = {"model": upstream(build(small_detectors["C2"], 0)), "metric_val": Hostile()}
    for save in (torch.save, lambda content, name: Path(name).write_bytes(pickle.dumps(content, protocol=2))):
        save(content, "theirs.pth")
        with pytest.raises(
            CheckpointError, match=r"got a file that would run code .* Nothing was run\. Save the model"
        ):
            build_detector(recipe, categories)
    assert not Path("executed").exists()
    pickle.loads(pickle.dumps(Hostile()))
    assert Path("executed").exists()  # it would have been


def test_damaged_and_missing_files(small_detectors, recipe_of, upstream, build, categories, tmp_path):
    path = tmp_path / "theirs.pth"
    recipe = recipe_of(small_detectors["C2"], initial_checkpoint=path)
    with pytest.raises(CheckpointError, match=r"theirs.pth: expected a checkpoint file, got nothing"):
        build_detector(recipe, categories)
    torch.save({"model": upstream(build(small_detectors["C2"], 0))}, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[middle:], whole[:middle] + bytes(1000) + whole[middle + 1000 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"theirs.pth: expected a whole checkpoint, got an unreadable file"):
            build_detector(recipe, categories)


def damaged(**changes):
    return lambda content: content.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("recipe"), "another .*recipe: Field required"),
        (damaged(recipe="[" * 5000), "expected a mapping in JSON"),
        (damaged(recipe=3), "recipe: Input should be a valid string"),
        (damaged(categories=[["3", "x"]]), "categories.0.0: Input should be a valid integer"),
        (damaged(categories=[]), "categories: Tuple should have at least 1 item"),
        (damaged(level=-1), "level: Input should be greater"),
        (damaged(metrics={"ap": float("nan")}), "metrics.ap: Input should be a finite number"),
        (damaged(model=[1]), "'list' object has no attribute 'items'"),
        (damaged(model={"a": 1}), "'a' under 'model' is no tensor"),
        (damaged(sparsifier=[1]), "'list' object has no attribute 'get'"),
        (damaged(sparsifier={"masks": {"gone": torch.ones(1, dtype=torch.bool)}}), "'gone' is no mask of its weights"),
        (damaged(sparsifier={"masks": {"head.box_pred.bias": torch.ones(8)}}), "is no mask of its weights"),
        (
            damaged(sparsifier={"masks": {"head.box_pred.bias": torch.ones(3, dtype=torch.bool)}}),
            "the mask of 'head.box_pred.bias' has another shape than its weight",
        ),
        (
            damaged(sparsifier={"masks": {"backbone.bn1.running_mean": torch.ones(16, dtype=torch.bool)}}),
            "expected masks of parameters, got one of 'backbone.bn1.running_mean'",
        ),
        (damaged(sparsifier={"masks": {}, "num_pruned": {"a": "1"}}), "num_pruned.a: Input should be a valid integer"),
    ],
)
def test_content_that_no_run_writes_is_refused(change, message, small_detectors, recipe_of, build, save, tmp_path):
    path = tmp_path / "c.pt"
    save(path, recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    content = load_checkpoint(path)
    open_checkpoint(path)
    change(content)
    torch.save(content, path)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.int64, "expected numbers like torch.float32"), (torch.complex64, "expected numbers like"),
     (torch.float8_e4m3fn, "expected numbers like")],
)  # fmt: skip
def test_weights_of_other_kinds_of_numbers_are_refused(
    dtype, message, small_detectors, recipe_of, build, save, tmp_path
):
    path = tmp_path / "c.pt"
    save(path, recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    content = load_checkpoint(path)
    content["model"]["head.box_pred.bias"] = content["model"]["head.box_pred.bias"].to(dtype)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_recipe_of_a_gigantic_detector_takes_no_memory(small_detectors, recipe_of, build, save, tmp_path):
    path = tmp_path / "c.pt"
    save(path, recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    content = load_checkpoint(path)
    for key, value, message in (
        ("channels", 10**6, "got another model's"),
        ("num_levels", 10**9, "expected less than or equal to 16"),
    ):
        recipe = json.loads(content["recipe"])
        recipe["detector"]["neck"][key] = value
        torch.save(content | {"recipe": json.dumps(recipe)}, path)
        with pytest.raises((CheckpointError, ConfigError), match=message):
            open_checkpoint(path)


def test_opening_a_checkpoint_reads_no_file_that_its_recipe_names(small_detectors, recipe_of, build, save, tmp_path):
    data = {"train": {"annotations": "/dev/zero"}, "val": {"annotations": "/dev/zero"}}  # neither ends, nor is it there
    recipe = recipe_of(small_detectors["C2"], data=data, initial_checkpoint=tmp_path / "gone.pt")
    save(tmp_path / "c.pt", recipe, build(small_detectors["C2"], 0))
    assert open_checkpoint(tmp_path / "c.pt").recipe == recipe
