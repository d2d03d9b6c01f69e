"""Runs of two processes, as `torchrun` starts them, beside runs of one."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, signal, sys, warnings
from contextlib import contextmanager
from pathlib import Path
import torch
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.errors import ConfigError
from sparsedet.common.processes import from_first, num_processes, rank
from sparsedet.common.stopping import Stopped

warnings.simplefilter("error")

class Acting(Console):
    do = {}

    @contextmanager
    def training(self, label, log_every, suite_seconds):
        def show(step, sparsity):
            if step.step == self.do.get("step") and rank() == self.do["rank"]:
                signal.raise_signal(getattr(signal, self.do["signal"]))
        yield show

Console.silent = lambda: Acting(quiet=True)
for number, (folder, overrides, do) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    Acting.do = do
    torch.rand(number + 3 * rank() if number else 0)  # nothing may depend on the state of the global generator
    try:
        run_suite(load_suite(Path(sys.argv[2]), overrides), Path(folder), "cpu", Acting(quiet=True))
    except Stopped as stopped:
        print(f"{rank()} of {num_processes()}: {stopped}", flush=True)

def fail():
    raise ConfigError(f"raised by {rank()}")

try:
    from_first(fail)
except ConfigError as error:
    print(f"{rank()} of 2: {error}, said: {error.is_said}", flush=True)
torch.distributed.destroy_process_group()
os._exit(0)  # torch now and then aborts when it tears down what has talked over gloo
"""

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}}"
IOU = "detector.head.iou_branch=true"  # its losses have normalisers of all processes
FROZEN = (IOU, "detector.backbone.norm=batch_norm_fixed_stats", "detector.neck.norm=none", "detector.head.norm=none")
SYNCED = (IOU, *(f"detector.{part}.norm=sync_batch_norm" for part in ("backbone", "neck", "head")))
SGD = ("training.optimizer={type: sgd, lr: 0.001}",)  # little, so that what is rounded stays as small
DYNAMIC = "sparsity={schedule: {type: dynamic, sparsity: 0.8}, update_interval: 2, allocation: {type: erk}}"
EMA = "training.ema={decay: 0.5, ramp: linear, ramp_steps: 2}"
INSIDE = ("evaluation.every_steps=2", "training.checkpoints.keep_best=true")
SHAPE = ("data.pad_multiple=128",)  # else a process pads its images to the largest of its own
BATCH = ("training.steps=8", "training.batch_size=4")


TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def torchrun(*arguments):
    """Start two processes under torchrun."""
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def recipe(tiny_recipe_text, tiny_data, tmp_path_factory):
    """The tiny recipe, on data of which some images are portraits."""
    root = shutil.copytree(tiny_data, tmp_path_factory.mktemp("processes") / "data")
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for entry in content["images"][:3]:
        entry["height"] = 128
        image = root / "images" / entry["file_name"]
        canvas = Image.new("RGB", (64, 128))
        canvas.paste(Image.open(image), (0, 0))
        canvas.save(image)
    path.write_text(json.dumps(content))
    recipe = root.parent / "tiny.yaml"
    recipe.write_text(tiny_recipe_text.replace(str(tiny_data), str(root)))
    return recipe


@pytest.fixture(scope="module")
def start(recipe):
    """Checkpoint of a dense run."""
    run(recipe, recipe.parent / "start", "training.steps=4", *FROZEN)
    return recipe.parent / "start" / "tiny" / "dense" / "checkpoint.pt"


@pytest.fixture(scope="module")
def two(recipe, start):
    """Folder of what two processes did, one folder for each case, and what they said."""
    folder = recipe.parent / "two"
    resumed = (*BATCH, DYNAMIC, EMA, "training.forward_batch_size=1", IOU, *INSIDE)
    cases = [
        ("same", (*BATCH, *SHAPE, *SGD, *FROZEN, LEVELS, f"initial_checkpoint={start}"), {}),
        ("synced", (*BATCH, *SHAPE, *SGD, *SYNCED, LEVELS), {}),
        ("local", (*BATCH, *SGD, LEVELS), {}),
        ("evaluated", ("training.steps=0", *FROZEN, f"initial_checkpoint={start}"), {}),
        ("groups", (*BATCH, "training.precision=bf16", "data.sampler={type: aspect_ratio_groups}"), {}),
        ("whole", resumed, {}),
        ("stopped", resumed, {"step": 1, "rank": 1, "signal": "SIGTERM"}),  # before gradients decide on masks
        ("stopped", resumed, {"step": 4, "rank": 0, "signal": "SIGINT"}),
        ("stopped", resumed, {}),
    ]
    (recipe.parent / "cases.json").write_text(json.dumps([(str(folder / name), *rest) for name, *rest in cases]))
    (recipe.parent / "script.py").write_text(SCRIPT)
    done = torchrun(recipe.parent / "script.py", recipe.parent / "cases.json", recipe)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def run(recipe, folder, *overrides):
    return run_suite(load_suite(recipe, overrides), folder, "cpu", Console(quiet=True))


def lines(folder, name, *without):
    rows = [json.loads(line) for line in (folder / "tiny" / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def losses(folder):
    return [(row["loss"], row["gradient_norm"]) for row in lines(folder, "metrics.jsonl") if "loss" in row]


def states(folder):
    return {str(path.relative_to(folder)): load_checkpoint(path) for path in sorted(folder.rglob("checkpoint.pt"))}


def assert_weights_close(folder, other):
    one, two = states(folder), states(other)
    assert one.keys() == two.keys()
    for name, content in one.items():
        masks, others = (state["sparsifier"]["masks"] for state in (content, two[name]))
        assert all(torch.equal(mask, others[key]) for key, mask in masks.items())
        for key, value in content["model"].items():
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                torch.testing.assert_close(two[name]["model"][key], value, rtol=0, atol=1e-6, msg=f"{name} {key}")


def test_loss_gradient_and_weights_are_those_of_one_process_with_the_double_batch(two, recipe, start, tmp_path):
    run(recipe, tmp_path, *BATCH, *SHAPE, *SGD, *FROZEN, LEVELS, f"initial_checkpoint={start}")
    for found, expected in zip(losses(two[0] / "same"), losses(tmp_path), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert_weights_close(two[0] / "same", tmp_path)


def test_synchronised_norms_are_those_of_one_process_with_the_double_batch(two, recipe, tmp_path):
    run(recipe, tmp_path, *BATCH, *SHAPE, *SGD, *SYNCED, LEVELS)
    found, expected = losses(two[0] / "synced")[0], losses(tmp_path)[0]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-3)  # the variance of small maps raises what is rounded


def test_with_normalisers_and_norms_of_their_own_processes_are_like_passes_of_one(two, recipe, tmp_path):
    run(recipe, tmp_path / "passes", *BATCH, *SGD, LEVELS, "training.forward_batch_size=2")
    run(recipe, tmp_path / "one", *BATCH, *SGD, LEVELS)
    found = losses(two[0] / "local")
    assert found == [pytest.approx(row, rel=1e-5) for row in losses(tmp_path / "passes")]
    assert_weights_close(two[0] / "local", tmp_path / "passes")
    assert abs(found[0][0] - losses(tmp_path / "one")[0][0]) > 1e-3  # of one large pass


def test_an_odd_number_of_images_is_evaluated_to_the_same_bits(two, recipe, start, tmp_path):
    run(recipe, tmp_path, "training.steps=0", *FROZEN, f"initial_checkpoint={start}")
    detections = [folder / "tiny" / "dense" / "detections.json" for folder in (two[0] / "evaluated", tmp_path)]
    assert detections[0].read_bytes() == detections[1].read_bytes()
    assert len({result["image_id"] for result in json.loads(detections[0].read_text())}) == 5
    one, other = (
        lines(folder, "records.jsonl", "seconds", "environment") for folder in (two[0] / "evaluated", tmp_path)
    )
    assert one == other


def test_batches_of_unequal_size_are_all_trained_on(two):
    assert len(losses(two[0] / "groups")) == 8
    assert lines(two[0] / "groups", "records.jsonl")[0]["steps"] == 8


def test_two_processes_stop_together_and_go_on_to_the_same_bits(assert_equal, two):
    folder, said = two
    for step, name in ((2, "SIGTERM"), (5, "SIGINT")):
        for rank in (0, 1):
            name = name if (rank == 1) == (step == 2) else "SIGTERM"
            assert (
                f"{rank} of 2: stopped by {name} before step {step} of tiny: the same command goes on from here" in said
            )
    whole, stopped = states(folder / "whole"), states(folder / "stopped")
    assert list(whole) == list(stopped) == ["tiny/sparsity-0.8/checkpoint.pt"]
    for part in ("model", "sparsifier", "trainer", "metrics"):
        assert_equal(*(state["tiny/sparsity-0.8/checkpoint.pt"][part] for state in (whole, stopped)))
    assert losses(folder / "whole") == losses(folder / "stopped")
    inside = [
        [row for row in lines(folder / name, "metrics.jsonl") if "val_ap" in row] for name in ("whole", "stopped")
    ]
    assert [row["step"] for row in inside[0]] == [1, 3, 5]  # at step 2 it was broken off
    assert inside[0] == inside[1]
    best = [load_checkpoint(folder / name / "tiny" / "sparsity-0.8" / "best.pt") for name in ("whole", "stopped")]
    assert_equal(*best)
    (record,) = lines(folder / "whole", "records.jsonl")
    assert (
        best[0]["metrics"]["ap"] == record["best_ap"] == max(record["metrics"]["ap"], *(r["val_ap"] for r in inside[0]))
    )


def test_what_fails_in_the_first_process_ends_all_and_is_said_once(two):
    assert "0 of 2: raised by 0, said: False" in two[1]
    assert "1 of 2: raised by 0, said: True" in two[1]


def test_where_one_process_is_killed_all_end_and_say_so(recipe, tmp_path):
    do = {"step": 1, "rank": 1, "signal": "SIGKILL"}
    (tmp_path / "cases.json").write_text(json.dumps([(str(tmp_path / "run"), BATCH, do)]))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(tmp_path / "script.py", tmp_path / "cases.json", recipe)
    assert done.returncode != 0
    assert "processes: expected all 2 to go on, got a broken connection" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr


@pytest.mark.long
def test_sixteen_processes_of_two_launchers_are_like_one(recipe, start, tmp_path):
    overrides = (*BATCH[:1], "training.batch_size=16", *SHAPE, *SGD, *FROZEN, LEVELS, f"initial_checkpoint={start}")
    run(recipe, tmp_path / "one", *overrides)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d", "--rdzv-id=mine"]
    command += [f"--rdzv-endpoint=localhost:{port}", "-m", "sparsedet.cli", "train", recipe, "--device", "cpu"]
    command += ["--output", tmp_path / "many", *(part for override in overrides for part in ("--set", override))]
    machines = [
        subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "find_unused_parameters" not in "".join(said)  # advice of DDP to each process, which we know better
    for found, expected in zip(losses(tmp_path / "many"), losses(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert_weights_close(tmp_path / "many", tmp_path / "one")
    one, many = (lines(tmp_path / name, "records.jsonl", "seconds") for name in ("one", "many"))
    assert [row["metrics"] for row in many] == [row["metrics"] for row in one]
    assert {row["environment"]["num_processes"] for row in many} == {16}
