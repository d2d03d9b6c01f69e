"""Suites whose experiments fail, run alone, run at the same time, or under `torchrun`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark.cells import SuiteError
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.launchers import CellCommand, launch_suite, torchrun
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError, StorageError
from sparsedet.common.stopping import Stopped
from sparsedet.report import load_run, read_records

SUITE = """\
title: Tiny
experiments:
- {name: dense, recipe: tiny.yaml}
- name: lamp
  start: dense
  recipe: {base: tiny.yaml, sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}}}
- {name: tuned, start: lamp, recipe: tiny.yaml}
- name: two-four
  start: dense
  recipe: {base: tiny.yaml, sparsity: {pattern: {type: n_m}, schedule: {type: one_shot}}}
"""
FAILING = "lamp:expected_steps=7"  # found out when it is run


@pytest.fixture
def suite(tiny_recipe, tmp_path):
    """Path of a suite file."""
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def run(path, folder, *overrides, console=None, only=None):
    return run_suite(load_suite(path, overrides), folder, "cpu", console or Console(quiet=True), only)


def command(path, folder, *more):
    """Return what the command line of a suite is, for a process of its own."""
    return [sys.executable, "-m", "sparsedet.cli", "bench", str(path), "-o", str(folder), "--device", "cpu", *more]


@contextmanager
def held(folder):
    """Hold the lock of a folder in another process."""
    folder.mkdir(parents=True, exist_ok=True)
    script = (
        "import sys; from pathlib import Path; from sparsedet.common.lock import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.stdin.close()


def test_images_that_were_away_cost_nothing(tiny_recipe, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    images, away = data / "images", data / "away"

    class Losing(Console):
        def warn(self, text):
            if "tried once more" in text:
                away.rename(images)
            super().warn(text)

        @contextmanager
        def training(self, label, log_every, suite_seconds):
            def show(step, sparsity):
                if step.step == 1 and not away.exists() and not lost:
                    lost.append(step)
                    images.rename(away)

            yield show

    lost, said = [], StringIO()
    console = Losing(rich=RichConsole(file=said, soft_wrap=True))
    run(tiny_recipe, tmp_path / "lost", f"data.root={data}", console=console)
    run(tiny_recipe, tmp_path / "whole", f"data.root={data}")
    assert "expected an image file" in said.getvalue()
    assert "tiny: going on: step 2 in dense\n" in said.getvalue()
    one, other = (load_checkpoint(tmp_path / name / "tiny" / "dense" / "checkpoint.pt") for name in ("lost", "whole"))
    assert all(value.equal(other["model"][key]) for key, value in one["model"].items())
    assert not (tmp_path / "lost" / "tiny" / "error.json").exists()


def test_a_failed_experiment_leaves_the_others_and_can_be_mended(suite, tmp_path):
    with pytest.raises(
        SuiteError,
        match=r"expected all 4 .* got 1 that failed:\n  lamp: expected_steps: .*\n  tuned: not run, .* lamp\nRemove",
    ):
        run(suite, tmp_path / "run", FAILING)
    assert json.loads((tmp_path / "run" / "lamp" / "error.json").read_text())["type"] == "ConfigError"
    finished = [experiment.is_finished for experiment in load_run(tmp_path / "run").experiments]
    assert finished == [True, False, False, True]
    assert [record.experiment for record in run(suite, tmp_path / "run")] == [
        "dense", "lamp", "lamp", "tuned", "two-four"
    ]  # fmt: skip
    assert not (tmp_path / "run" / "lamp" / "error.json").exists()


def test_where_in_the_suite_it_is_and_how_long_that_takes(suite, tmp_path):
    def says(*overrides, only=None):
        said = StringIO()
        run(
            suite, tmp_path / "run", *overrides, console=Console(rich=RichConsole(file=said, soft_wrap=True)), only=only
        )
        return said.getvalue()

    unlike = "tuned:training.batch_size=3"
    said = says(unlike, only="dense")  # others may run meanwhile
    assert "dense: experiment 1 of 4\n" in said
    assert "run 0 s\n" in said
    said = says(unlike)
    assert re.findall(r"(\S+): experiment (\d) of 4\n", said) == list(
        zip(("dense", "lamp", "tuned", "two-four"), "1234", strict=True)
    )
    found = re.findall(r"  (\S+) \S+ step 4/4 .*run 0 s(?:, suite (\d+) s)?\n", said)
    assert [(name, bool(seconds)) for name, seconds in found] == [
        ("lamp", False), ("tuned", True), ("two-four", True)
    ]  # fmt: skip


def test_one_experiment_alone(suite, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"--only: expected an experiment of \['dense', .* Did you mean 'lamp'\?"):
        run(suite, folder, only="lmp")
    with pytest.raises(CheckpointError, match=r"run/dense: expected a finished .*, got none\. Run 'dense' first\."):
        run(suite, folder, only="lamp")
    assert len(run(suite, folder, only="dense")) == 1
    lamp = run(suite, folder, only="lamp")
    assert [record.initial_weights for record in lamp] == ["dense/dense"] * 2
    assert [record.num_levels for record in load_run(folder).records] == [1, 2, 2]
    lines = (folder / "lamp" / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "lamp" / "records.jsonl").write_text(lines[0])
    with pytest.raises(CheckpointError, match=r"run/lamp: expected .*, got 1 of 2 levels\. Run 'lamp' first\."):
        run(suite, folder, only="tuned")


def test_locks_of_a_suite_and_of_its_experiments(suite, tmp_path):
    folder = tmp_path / "run"
    run(suite, folder, only="dense")
    with held(folder):  # another process runs the whole suite
        with pytest.raises(StorageError, match=r"run: expected a folder that no other run writes to, got one in use"):
            run(suite, folder)
        assert len(run(suite, folder, only="two-four")) == 1
        other = tmp_path / "other.yaml"
        other.write_text(SUITE.replace("Tiny", "Another"))
        with pytest.raises(StorageError, match="run: expected a folder that no other run"):
            run(other, folder, only="lamp")
    with held(folder / "lamp"):
        with pytest.raises(StorageError, match=r"run/lamp: expected a folder that no other run writes to"):
            run(suite, folder, only="lamp")
        with pytest.raises(SuiteError, match=r"got 1 that failed:\n  lamp: .* in use by process .*\n  tuned: not run"):
            run(suite, folder)
    run(other, folder, only="lamp")
    assert json.loads((folder / "suite.json").read_text())["title"] == "Another"


@pytest.mark.slow
def test_experiments_that_run_at_the_same_time_give_one_report(suite, tmp_path):
    folder = tmp_path / "run"
    run(suite, folder, only="dense")
    names = ("lamp", "two-four")
    processes = [subprocess.Popen(command(suite, folder, "--only", name), stderr=subprocess.PIPE) for name in names]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    rows = (folder / "table.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["dense", "lamp", "lamp", "two-four"]
    assert len((folder / "lamp" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_suite_under_torchrun_is_stopped_and_goes_on(suite, tmp_path, capfd):
    folder = tmp_path / "run"
    for name in ("dense", "lamp", "tuned"):
        run(suite, folder, only=name)
    overrides = ("two-four:training.steps=60",)
    loaded, cell = load_suite(suite, overrides), CellCommand(suite, folder, "cpu", overrides)

    def interrupt():
        while not (folder / "two-four" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped, match="stopped by SIGINT at two-four") as stopped:
        launch_suite(loaded, cell, torchrun(2, "--standalone"), Console(quiet=True))
    assert stopped.value.exit_code == 130
    assert json.loads((folder / "two-four" / "error.json").read_text())["signal"] == signal.SIGTERM
    (saved,) = (folder / "two-four" / "progress").iterdir()
    capfd.readouterr()
    launch_suite(loaded, cell, torchrun(2, "--standalone"), Console())
    said = capfd.readouterr().err
    for name in ("dense", "lamp", "tuned"):
        assert f"{name}: finished before, nothing to do\n" in said
    step = saved.stem.split("-")[-1]
    assert f"two-four: going on: step {step} in sparsity-0.5\n" in said
    (record,), _ = read_records(folder / "two-four")
    assert (record.steps, record.environment["num_processes"]) == (60, 2)
