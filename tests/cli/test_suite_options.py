"""Options of `bench` that say what is run where; what they call is replaced here."""

import json
import signal
import sys

import pytest

from sparsedet.benchmark import launchers, slurm
from sparsedet.benchmark.cells import SuiteError
from sparsedet.benchmark.launchers import CellCommand
from sparsedet.benchmark.slurm import SlurmOptions
from sparsedet.common.stopping import Stopped
from sparsedet.report.run import SUITE_FILE


@pytest.fixture
def calls(monkeypatch):
    """What launchers were called with; `raises` is what they end with."""
    found = []
    found_raises = {}

    def fake(name):
        def call(suite, command, how, console):
            found.append((name, command, how))
            entry = {"name": "tiny", "family": "", "label": "tiny"}
            command.folder.mkdir(parents=True)
            (command.folder / SUITE_FILE).write_text(json.dumps({"title": "Tiny", "experiments": [entry]}))
            if "error" in found_raises:
                raise found_raises["error"]

        return call

    monkeypatch.setattr(launchers, "launch_suite", fake("launch"))
    monkeypatch.setattr(slurm, "submit_suite", fake("submit"))
    return found, found_raises


def test_launchers_get_what_the_options_say(sparsedet, calls, tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    options = ("--output", folder, "--device", "cpu", "--seed", "3", "--set", "training.steps=2")
    done = sparsedet("bench", tiny_recipe, *options, "--launcher", "nice -n 5")
    assert (done.returncode, done.stderr.startswith("written: ")) == (0, True)
    command = CellCommand(tiny_recipe, folder, "cpu", ("training.steps=2", "seed=3"))
    assert calls[0] == [("launch", command, ["nice", "-n", "5"])]
    assert (folder / "report.html").exists()


def test_slurm_gets_what_the_options_say(sparsedet, calls, tiny_recipe, tmp_path):
    more = ("--launcher", "slurm", "--nodes", "2", "--processes", "8", "--slurm", "time=60", "--slurm", "qos=low")
    done = sparsedet("bench", tiny_recipe, "--output", tmp_path / "run", *more, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert calls[0][0][2] == SlurmOptions(2, 8, {"time": "60", "qos": "low"})


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SuiteError("suite: one failed"), 2, "error: suite: one failed\n"),
        (Stopped("stopped here", signal.SIGTERM), 143, "stopped here\n"),
        (KeyboardInterrupt(), 130, "interrupted: what is finished stays in"),
    ],
)
def test_ends_of_a_launcher(sparsedet, calls, tiny_recipe, tmp_path, error, code, message):
    calls[1]["error"] = error
    done = sparsedet("bench", tiny_recipe, "--output", tmp_path / "run", "--launcher", "torchrun")
    assert done.returncode == code
    assert message in done.stderr
    assert (tmp_path / "run" / "report.html").exists() == (code == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes", "2"), "--nodes, --slurm: expected them with --launcher slurm"),
        (("--slurm", "time=5", "--launcher", "torchrun"), "--nodes, --slurm: expected them with --launcher slurm"),
        (("--processes", "2"), "--processes: expected it with --launcher"),
        (("--only", "tiny", "--launcher", "torchrun"), "--launcher: expected a whole suite, got --only"),
        (("--launcher", "slurm"), "--slurm: expected the time limit of a job in minutes"),
        (("--launcher", "slurm", "--slurm", "time=5"), "expected the package submitit"),
    ],
)
def test_options_that_do_not_go_together(sparsedet, tiny_recipe, tmp_path, options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = sparsedet("bench", tiny_recipe, "--output", tmp_path / "run", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_several_processes_start_no_launchers(sparsedet, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = sparsedet("bench", tiny_recipe, "--output", tmp_path / "run", "--launcher", "torchrun")
    assert (done.returncode, "--launcher: expected one process, got several" in done.stderr) == (2, True)


def test_one_of_several_processes_leaves_no_work_to_the_end_of_python(sparsedet, tiny_recipe, monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    assert sparsedet("train", tiny_recipe, "--dry-run").returncode == 0
    assert codes == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sparsedet("train", tiny_recipe, "--dry-run").stdout
    assert codes == [0]


def test_the_report_holds_what_could_be_run(sparsedet, tiny_recipe, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        "title: Tiny\nexperiments: [{name: one, recipe: tiny.yaml}, {name: two, recipe: tiny.yaml}]"
    )
    options = ("--output", tmp_path / "run", "--device", "cpu", "--set", "one:expected_steps=7")
    done = sparsedet("bench", tmp_path / "suite.yaml", *options)
    assert done.returncode == 2
    assert "error: suite: expected all 2 experiments to finish, got 1 that failed:\n  one: expected_st" in done.stderr
    assert "| two" in done.stdout


def test_one_experiment_prints_its_own_records_only(sparsedet, tiny_recipe, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        "title: Tiny\nexperiments: [{name: one, recipe: tiny.yaml}, {name: two, recipe: tiny.yaml}]"
    )
    for name in ("one", "two"):
        options = ("--output", tmp_path / "run", "--device", "cpu", "--set", "training.steps=1", "--only", name)
        done = sparsedet("bench", tmp_path / "suite.yaml", *options, "--json")
        assert [record["experiment"] for record in json.loads(done.stdout)] == [name]
    done = sparsedet("bench", tmp_path / "suite.yaml", *options)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"written: {tmp_path}/run/table.rst" in done.stderr


def test_hours_of_a_plan(sparsedet, tiny_recipe, tmp_path):
    done = sparsedet("bench", tiny_recipe, "--device", "cpu", "--output", tmp_path / "run", "--measure")
    assert "hours" in done.stdout.splitlines()[0]
    assert "\ndisk: at most " in done.stdout
    assert f"are free at {tmp_path}\nhours: " in done.stdout
    assert not (tmp_path / "run").exists()
    (row,) = json.loads(sparsedet("train", tiny_recipe, "--device", "cpu", "--measure", "--dry-run", "--json").stdout)
    assert row["hours"] > 0
