"""Compact files of detectors go wherever checkpoints go."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sparsedet.benchmark.checkpoint import build_detector, num_level_bytes, open_checkpoint
from sparsedet.benchmark.compact import read_any, write_compact
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, MissingExtraError
from sparsedet.export.compact import save_compact

LEVELS = {"schedule": {"type": "level_wise", "levels": (0.8, 0.9)}}


def write(path, out, **options):
    write_compact(out, load_checkpoint(path), 0.8, **options)


@pytest.mark.parametrize("zstd", [False, True])
def test_a_compact_file_opens_as_its_checkpoint_does(zstd, save_pruned, assert_same, categories, recipe_of, tmp_path):
    save_pruned(tmp_path / "c.pt", LEVELS)
    write(tmp_path / "c.pt", tmp_path / "w.safetensors", zstd=zstd)
    one, other = open_checkpoint(tmp_path / "c.pt"), open_checkpoint(tmp_path / "w.safetensors")
    assert_same(other.model, one.model)
    assert (other.recipe, other.categories, other.level, other.step) == (one.recipe, categories, 0, 7)
    assert other.num_pruned == one.num_pruned
    assert sum(one.num_pruned.values()) == round(0.8 * sum(mask.numel() for mask in one.masks.values()))
    assert other.masks.keys() == one.masks.keys()
    assert all(torch.equal(other.masks[name], mask) for name, mask in one.masks.items())
    model, _ = build_detector(recipe_of(one.recipe.detector, initial_checkpoint=tmp_path / "w.safetensors"), categories)
    assert_same(model, one.model)


def test_a_dense_detector_has_no_masks(small_detectors, save, build, recipe_of, assert_same, tmp_path):
    model = build(small_detectors["C4"], 0)
    save(tmp_path / "c.pt", recipe_of(small_detectors["C4"]), model)
    write_compact(tmp_path / "w.safetensors", load_checkpoint(tmp_path / "c.pt"), 0.0)
    saved = open_checkpoint(tmp_path / "w.safetensors")
    assert saved.masks == {}
    assert_same(saved.model, model)


def test_the_metadata_say_what_the_weights_are(save_pruned, tmp_path):
    save_pruned(tmp_path / "c.pt", LEVELS)
    write(tmp_path / "c.pt", tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        info = json.loads(file.metadata()["sparsedet"])["info"]
    assert info["categories"] == [[3, "bright"], [7, "dark"]]
    assert info["sparsity"] == 0.8
    assert info["recipe"]["sparsity"]["schedule"]["levels"] == [0.8, 0.9]


def test_safetensors_of_other_programs_start_a_run(
    small_detectors, build, upstream, recipe_of, categories, assert_same, tmp_path
):
    source = build(small_detectors["C1"], 0)
    state = {name: value.clone() for name, value in upstream(source).items()}
    save_file(state, tmp_path / "theirs.safetensors")
    recipe = recipe_of(small_detectors["C1"], initial_checkpoint=tmp_path / "theirs.safetensors")
    assert_same(build_detector(recipe, categories)[0], source)
    with pytest.raises(CheckpointError, match="expected a file written by sparsedet, got another program's"):
        open_checkpoint(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": 3}, "recipe: Input should be an object"),
        ({"categories": [["3", "bright"]]}, r"categories\.0\.0: Input should be a valid integer"),
        ({"level": -1}, "level: Input should be greater than or equal to 0"),
        ({"num_pruned": {"head.gone.weight": 1}}, "no tensor 'head.gone.weight'"),
        ({"sparsity": 2.0}, "sparsity: Input should be less than or equal to 1"),
        ({"run": "rm"}, "run: Extra inputs are not permitted"),
    ],
)
def test_metadata_of_another_content_are_refused(change, reason, save_pruned, tmp_path):
    save_pruned(tmp_path / "c.pt", LEVELS)
    path = tmp_path / "w.safetensors"
    write(tmp_path / "c.pt", path)
    with safe_open(path, "pt") as file:
        info = json.loads(file.metadata()["sparsedet"])["info"]
    save_compact(path, read_any(path)["model"], info=info | change)
    message = rf"expected what sparsedet says of a detector in the metadata, got something else \({reason}"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_level_that_the_recipe_does_not_have_is_refused(save_pruned, tmp_path):
    save_pruned(tmp_path / "c.pt", LEVELS)
    torch.save(load_checkpoint(tmp_path / "c.pt") | {"level": 2}, tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="expected one of the 2 levels of its recipe, got level 2"):
        open_checkpoint(tmp_path / "d.pt")


def test_without_zstandard_the_file_is_not_called_damaged(save_pruned, tmp_path, monkeypatch):
    save_pruned(tmp_path / "c.pt", LEVELS)
    write(tmp_path / "c.pt", tmp_path / "w.safetensors", zstd=True)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingExtraError):
        open_checkpoint(tmp_path / "w.safetensors")


def tensor_bytes(value):
    """Sum up the bytes of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, parts))


SOFT = "mask_update: every_k_steps, update_interval: 1, keep_pruned_values: true, "


@pytest.mark.parametrize(("with_average", "soft"), [(False, ""), (True, ""), (False, SOFT)])
def test_the_space_asked_for_is_what_a_level_leaves(with_average, soft, tiny_recipe, tmp_path):
    from sparsedet.benchmark.console import Console
    from sparsedet.benchmark.suite import load_suite, run_suite

    settings = ["training.steps=1", f"sparsity={{{soft}schedule: {{type: one_shot, sparsity: 0.3}}}}"]
    settings += ["training.ema={}"] if with_average else []
    run_suite(load_suite(tiny_recipe, settings), tmp_path / "run", "cpu", Console(quiet=True))
    level = tmp_path / "run" / "tiny" / "sparsity-0.3"
    saved = open_checkpoint(level / "checkpoint.pt")
    content = load_checkpoint(level / "checkpoint.pt")
    dense = tensor_bytes(content["model"])
    asked = num_level_bytes(saved.model, saved.recipe) - 2**20  # which is room for headers
    assert asked == pytest.approx(tensor_bytes(content) + dense, rel=0.01)
    written = sum((level / name).stat().st_size for name in ("checkpoint.pt", "weights.safetensors"))
    assert written < asked + 2**20
    assert (level / "weights.safetensors").stat().st_size < 0.8 * dense
