"""Runs with ``pattern.permute``: what they write, averages of the weights, and going on after an interruption."""

import json
import shutil

import pytest
import torch

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.benchmark.verify import verify_file
from sparsedet.common.checkpoint import load_checkpoint

BLOCK = "sparsity={{pattern: {{type: n_m{}}}, schedule: {{type: one_shot}}}}"
PERMUTED = BLOCK.format(", permute: true")


def run(path, folder, *overrides):
    return run_suite(load_suite(path, overrides), folder, "cpu", Console(quiet=True))


def weights_of(folder):
    (path,) = folder.glob("tiny/*/checkpoint.pt")
    return load_checkpoint(path)["model"], path


@pytest.fixture
def start(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "start")
    return f"initial_checkpoint={weights_of(tmp_path / 'start')[1]}"


def test_more_is_kept_of_the_same_weights_and_the_report_says_where(tiny_recipe, start, tmp_path):
    for name, block in (("plain", BLOCK.format("")), ("permuted", PERMUTED)):
        run(tiny_recipe, tmp_path / name, start, block, "training.steps=0")
    report = json.loads((tmp_path / "permuted" / "tiny" / "permutation.json").read_text())
    assert report["groups"]
    assert report["left_alone"]["backbone.conv1.weight"].startswith("2:4 needs in_channels")
    assert report["max_output_difference"] <= 1e-4 * report["max_output"]
    plain, permuted = (weights_of(tmp_path / name)[0] for name in ("plain", "permuted"))
    name = report["groups"][0]["weights"][0]
    assert float(permuted[name].abs().sum()) != float(plain[name].abs().sum())
    kept = [sum(float(state[name].abs().sum()) for group in report["groups"] for name in group["weights"])
            for state in (plain, permuted)]  # fmt: skip
    assert kept[1] > kept[0]
    assert verify_file(weights_of(tmp_path / "permuted")[1]).faults == ()


def test_an_average_has_the_same_order_and_a_resumed_run_keeps_it(tiny_recipe, start, tmp_path):
    settings = (start, PERMUTED, "training.ema={decay: 0.5}", "training.steps=2")
    (averaged,) = run(tiny_recipe, tmp_path / "averaged", *settings)
    (plain,) = run(tiny_recipe, tmp_path / "plain", *settings[:2], "training.steps=2")
    assert averaged.ap_after_pruning == plain.ap_after_pruning
    state, path = weights_of(tmp_path / "averaged")
    trained = load_checkpoint(path)["trainer"]["model"]
    for name, value in state.items():
        if value.is_floating_point():  # two small steps are not far; another order would be
            assert float((value - trained[name]).norm()) < 0.1 * float(trained[name].norm()) + 1e-3, name
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "averaged", again)
    written = (again / "tiny" / "permutation.json").stat().st_mtime_ns
    run(tiny_recipe, again, *settings)
    assert (again / "tiny" / "permutation.json").stat().st_mtime_ns == written
    assert all(torch.equal(value, state[name]) for name, value in weights_of(again)[0].items())
