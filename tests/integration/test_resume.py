"""Runs that are stopped inside a level, and what they come to beside a run that nothing disturbed."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from io import StringIO

import pytest
import torch
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import evaluate_checkpoint
from sparsedet.benchmark.level_runner import LevelRunner
from sparsedet.benchmark.metrics_file import TIME_KEYS
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError, DatasetError, StorageError
from sparsedet.common.stopping import Stopped
from sparsedet.detection.trainer import Trainer

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}}"
SGD = "training.optimizer={type: sgd, lr: 0.01}"
EMA = "training.ema={decay: 0.5, ramp: linear, ramp_steps: 2}"


class Stopping(Console):
    """Sends signals to its own process when a step is shown; what it says is kept in `text`."""

    def __init__(self, *steps, number=signal.SIGTERM, times=1):
        self.stream = StringIO()
        super().__init__(rich=RichConsole(file=self.stream, width=80, color_system=None, soft_wrap=True))
        self.steps, self.number, self.times = steps, number, times

    @property
    def text(self):
        return self.stream.getvalue()

    @contextmanager
    def training(self, label, log_every, suite_seconds):
        def show(step, sparsity):
            if step.step in self.steps:
                torch.rand(7)  # nothing may depend on the state of the global generator
                for _ in range(self.times):
                    signal.raise_signal(self.number)

        yield show


def run(path, folder, *overrides, console=None):
    settings = ("training.steps=8", *overrides)
    return run_suite(load_suite(path, settings), folder, "cpu", console or Console(quiet=True))


def stop(path, folder, step, *overrides, **how):
    """Run until a signal comes in `step`."""
    console = Stopping(step, **how)
    with pytest.raises(Stopped):
        run(path, folder, *overrides, console=console)
    return console


def lines(path, *without):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


@pytest.fixture
def assert_same_run(assert_equal):
    """Function that compares all that two run folders of the tiny recipe hold."""

    def compare(one, other):
        one, other = one / "tiny", other / "tiny"
        files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
        assert files[0] == files[1]
        assert_equal(*(lines(folder / "metrics.jsonl", *TIME_KEYS) for folder in (one, other)))
        assert_equal(*(lines(folder / "records.jsonl", "seconds", "environment") for folder in (one, other)))
        for name in files[0]:
            if name.endswith(("checkpoint.pt", "best.pt")):
                assert_equal(*(load_checkpoint(folder / name) for folder in (one, other)), name)
            if name.endswith(("detections.json", "weights.safetensors")):
                assert (one / name).read_bytes() == (other / name).read_bytes()

    return compare


SETTINGS = {
    "adamw, average": (LEVELS, EMA),
    "sgd, two workers": (LEVELS, SGD, "training.num_workers=2"),
    "2:4": ("sparsity={pattern: {type: n_m}, schedule: {type: one_shot}}", SGD, EMA),
    "cubic": ("sparsity={schedule: {type: cubic, sparsity: 0.8, last: 0.9}, update_interval: 2}",),
    "dynamic": (
        "sparsity={schedule: {type: dynamic, sparsity: 0.8}, update_interval: 2, allocation: {type: erk}}",
        EMA,
    ),
    "pruned values kept": (LEVELS.replace("{schedule", "{keep_pruned_values: true, schedule"), SGD),
    "frozen and slower parts": (
        LEVELS.replace("{schedule", "{targets: {include_frozen: true}, schedule"),
        "training.freeze=[preset:stem, 'backbone.layer1.*', 'type:BatchNorm2d']",
        "training.lr_multipliers={'backbone.*': 0.1, preset:prediction: 2}",
        "evaluation.after_pruning=true",
        EMA,
    ),
    "evaluated inside": (LEVELS, EMA, "evaluation.every_steps=1", "training.checkpoints.keep_best=true"),
    "dense, passes, bf16": (
        "training.batch_size=4",
        "training.forward_batch_size=2",
        "training.precision=bf16",
        "data.sampler={type: aspect_ratio_groups}",
        "data.train_transforms=[{type: horizontal_flip}, {type: hsv_jitter}]",
    ),
}


@pytest.mark.parametrize("settings", [pytest.param(value, id=name) for name, value in SETTINGS.items()])
def test_a_run_stopped_in_the_middle_of_epochs_and_levels_ends_with_the_same_bits(
    assert_same_run, settings, tiny_recipe, tmp_path
):
    run(tiny_recipe, tmp_path / "whole", *settings)
    for step in (1, 4, 6):  # epochs have 3 steps, or 2 of 4 images; levels begin at 0 and 4
        stop(tiny_recipe, tmp_path / "stopped", step, *settings)
    run(tiny_recipe, tmp_path / "stopped", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def breaking_off(monkeypatch, number):
    """Let a signal come in an evaluation; return where each is begun."""
    evaluate, calls = LevelRunner._evaluate, []

    def stopped(self):
        calls.append(self.standing.step)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(LevelRunner, "_evaluate", stopped)
    return calls


@pytest.mark.parametrize("when", ["after_pruning", "end"])
def test_a_run_stopped_while_it_evaluates_ends_with_the_same_bits(
    assert_same_run, when, tiny_recipe, tmp_path, monkeypatch
):
    run(tiny_recipe, tmp_path / "whole", LEVELS, EMA)
    calls = breaking_off(monkeypatch, {"after_pruning": 3, "end": 4}[when])
    with pytest.raises(Stopped, match=f"before step {calls_step(when)} of tiny"):
        run(tiny_recipe, tmp_path / "stopped", LEVELS, EMA)
    run(tiny_recipe, tmp_path / "stopped", LEVELS, EMA)
    # pruned at 0, level 0 ends at 4, pruned at 4, level 1 ends at 8; what was broken off comes again
    assert calls == [0, 4, 4, 4, 8] if when == "after_pruning" else [0, 4, 4, 8, 8]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def calls_step(when):
    return {"after_pruning": 4, "end": 8}[when]


def test_an_evaluation_inside_a_level_that_is_broken_off_comes_again(
    assert_same_run, tiny_recipe, tmp_path, monkeypatch
):
    settings = (LEVELS, EMA, "evaluation.every_steps=2", "training.checkpoints.keep_best=true")
    run(tiny_recipe, tmp_path / "whole", *settings)
    calls = breaking_off(monkeypatch, 5)  # pruned, inside, end; pruned, inside, end
    with pytest.raises(Stopped, match="before step 6 of tiny"):
        run(tiny_recipe, tmp_path / "stopped", *settings)
    stop(tiny_recipe, tmp_path / "stopped", 6, *settings)
    (tmp_path / "stopped" / "tiny" / "progress" / "level-1-step-7.pt").unlink()  # as if it had been killed before that
    run(tiny_recipe, tmp_path / "stopped", *settings)
    assert calls == [0, 2, 4, 4, 6, 6, 6, 8]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_checkpoints_come_as_often_as_asked_and_the_last_ones_are_kept(tiny_recipe, tmp_path):
    every = "training.checkpoints={every_steps: 1, keep: 3}"
    stop(tiny_recipe, tmp_path / "run", 6, every, LEVELS)
    progress = tmp_path / "run" / "tiny" / "progress"
    assert sorted(path.name for path in progress.iterdir()) == [f"level-1-step-{step}.pt" for step in (5, 6, 7)]
    content = load_checkpoint(progress / "level-1-step-6.pt")
    masks = content["sparsifier"]["masks"]
    assert all((content["model"][name][~mask] == 0).all() for name, mask in masks.items())
    assert evaluate_checkpoint(progress / "level-1-step-6.pt")["ap"] >= 0  # a detector like any other


def test_how_often_is_no_part_of_the_experiment(tiny_recipe, tmp_path):
    stop(tiny_recipe, tmp_path / "run", 2)
    run(tiny_recipe, tmp_path / "run", "training.checkpoints={every_steps: 3}")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(assert_same_run, damage, tiny_recipe, tmp_path):
    every = "training.checkpoints={every_steps: 1, keep: 2}"
    run(tiny_recipe, tmp_path / "whole", every, LEVELS)
    stop(tiny_recipe, tmp_path / "run", 6, every, LEVELS)
    newest = tmp_path / "run" / "tiny" / "progress" / "level-1-step-7.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:5000], "flipped": content, "empty": b""}[damage])
    console = Stopping()
    run(tiny_recipe, tmp_path / "run", every, LEVELS, console=console)
    assert f"{newest}: expected a whole checkpoint, got an unreadable file" in console.text
    assert "tiny: going on: step 6 in sparsity-0.8" in console.text
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_damaged_checkpoint_of_a_level_is_named_and_the_level_run_again(assert_same_run, tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "whole", LEVELS)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tiny" / "sparsity-0.8")
    damaged = tmp_path / "run" / "tiny" / "sparsity-0.5" / "checkpoint.pt"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    console = Stopping()
    run(tiny_recipe, tmp_path / "run", LEVELS, console=console)
    assert f"{damaged}: expected a whole checkpoint" in console.text
    damaged.with_name("checkpoint.pt.damaged").unlink()
    (tmp_path / "run" / "tiny" / "records.jsonl").write_text(  # level 0 was recorded again
        "".join((tmp_path / "run" / "tiny" / "records.jsonl").read_text().splitlines(keepends=True)[-2:])
    )
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("key", ["trainer", "sparsifier", "progress"])
def test_a_whole_checkpoint_of_other_content_is_named(key, tiny_recipe, tmp_path):
    stop(tiny_recipe, tmp_path, 2, LEVELS)
    (path,) = (tmp_path / "tiny" / "progress").iterdir()
    content = torch.load(path, weights_only=True)
    torch.save(content | {key: {"masks": {}}}, path)
    with pytest.raises(
        CheckpointError, match=r"level-0-step-3\.pt: expected the state of a run of this recipe, got an"
    ):
        run(tiny_recipe, tmp_path, LEVELS)


def test_what_is_said_of_a_state_that_does_not_fit_is_passed_on(tiny_recipe, tmp_path, monkeypatch):
    stop(tiny_recipe, tmp_path, 2, LEVELS)
    said = "training.optimizer: expected that of before, got another. Give that."

    def refuse(self, state):
        raise ConfigError(said)

    monkeypatch.setattr(Trainer, "load_state_dict", refuse)
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        run(tiny_recipe, tmp_path, LEVELS)


def test_without_room_for_a_checkpoint_training_goes_on(assert_same_run, tiny_recipe, tmp_path, monkeypatch):
    every = "training.checkpoints={every_steps: 1}"
    run(tiny_recipe, tmp_path / "whole", every, LEVELS)
    with monkeypatch.context() as patch:

        def full(path, content):
            raise StorageError(f"{path}: expected some room, got none. Free some.")

        patch.setattr("sparsedet.benchmark.progress.save_checkpoint", full)
        console = stop(tiny_recipe, tmp_path / "run", 2, every, LEVELS)
        assert console.text.count("warning: no checkpoint at step") == 3
    run(tiny_recipe, tmp_path / "run", every, LEVELS)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_images_that_vanish_and_come_back_cost_no_step(assert_same_run, tiny_recipe, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    settings = (LEVELS, f"data.root={data}")
    run(tiny_recipe, tmp_path / "whole", *settings)

    class Vanishing(Stopping):
        @contextmanager
        def training(self, label, log_every, suite_seconds):
            def show(step, sparsity):
                if step.step == 5:
                    (data / "images").rename(data / "elsewhere")

            yield show

    console = Vanishing()
    with pytest.raises(DatasetError, match=r"expected 6 image files in .*, got 6 missing"):
        run(tiny_recipe, tmp_path / "run", *settings, console=console)
    assert re.search(r"images/train_\d\.png: expected .* It is tried once more, from its last", console.text)
    with pytest.raises(DatasetError):
        run(tiny_recipe, tmp_path / "run", *settings)
    (data / "elsewhere").rename(data / "images")
    console = Stopping()
    run(tiny_recipe, tmp_path / "run", *settings, console=console)
    assert "tiny: going on: step 6 in sparsity-0.8" in console.text
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("change", "message"), [("recipe", "one that differs in seed"), ("data", "got other data")])
def test_another_run_does_not_go_on_from_inside_a_level(change, message, tiny_recipe, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    stop(tiny_recipe, tmp_path / "run", 2, f"data.root={data}")
    if change == "data":
        path = data / "annotations" / "val.json"
        path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    with pytest.raises(ConfigError, match=message):
        run(tiny_recipe, tmp_path / "run", f"data.root={data}", *(["seed=1"] if change == "recipe" else []))


def test_a_second_control_c_ends_at_once(tiny_recipe, tmp_path):
    stop(tiny_recipe, tmp_path / "run", 2, number=signal.SIGINT)
    assert (tmp_path / "run" / "tiny" / "progress" / "level-0-step-3.pt").exists()
    console = Stopping(4, number=signal.SIGINT, times=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe, tmp_path / "run", console=console)
    assert [path.name for path in (tmp_path / "run" / "tiny" / "progress").iterdir()] == ["level-0-step-3.pt"]
    assert signal.getsignal(signal.SIGINT) is handler


HOLDER = """
import sys, time
from pathlib import Path
from sparsedet.common.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_write_to_one_folder(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "locked\n"
        message = rf"run: expected a folder that no other run writes to, got one in use by process {holder.pid} on"
        with pytest.raises(StorageError, match=message):
            run(tiny_recipe, folder)
        holder.kill()
    run(tiny_recipe, folder)  # the lock of a process that was killed is free
