"""Experiments in commands of their own; the commands are small scripts here, `torchrun` is in the integration tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark.cells import SuiteError
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.launchers import CellCommand, launch_suite, prefix_of, run_command
from sparsedet.benchmark.suite import load_suite
from sparsedet.common.errors import ConfigError, DatasetError, ProcessesError, StorageError
from sparsedet.common.lock import locked
from sparsedet.common.stopping import Stopped, StopRequests

SUITE = """\
title: Tiny
experiments:
- {name: dense, recipe: tiny.yaml}
- {name: lamp, start: dense, recipe: tiny.yaml}
- {name: other, recipe: tiny.yaml}
"""
# Stands for `torchrun … -m sparsedet.cli bench …`: notes its arguments and does what plan.json says of its experiment.
SCRIPT = """
import json, os, sys
from pathlib import Path
folder = Path(__file__).parent
arguments = sys.argv[1:]
name = arguments[arguments.index("--only") + 1]
with (folder / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps(arguments) + chr(10))
plan = json.loads((folder / "plan.json").read_text())
code, error = plan[name].pop(0) if plan.get(name) else (0, None)
(folder / "plan.json").write_text(json.dumps(plan))
own = Path(arguments[arguments.index("--output") + 1]) / name
own.mkdir(exist_ok=True)
(own / "error.json").unlink(missing_ok=True)
if error:
    (own / "error.json").write_text(json.dumps(error))
print("printed")
sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)
"""


@pytest.fixture
def launch(tiny_recipe, tmp_path):
    """Function of what each experiment does, and the suite: runs it, and returns the names of what was started."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "suite.yaml").write_text(SUITE)
    command = CellCommand(tmp_path / "suite.yaml", tmp_path / "run", "cpu", ("seed=3", "lamp:training.steps=2"))

    def run(suite="suite.yaml", **plan):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        prefix = [sys.executable, str(tmp_path / "script.py")]
        launch_suite(load_suite(tmp_path / suite), command, prefix, Console(rich=RichConsole(file=run.said)))

    def calls():
        path = tmp_path / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    run.said, run.calls = StringIO(), calls
    run.started = lambda: [call[call.index("--only") + 1] for call in calls()]
    return run


def test_each_experiment_gets_its_command(launch, tmp_path, capfd):
    launch()
    assert launch.started() == ["dense", "lamp", "other"]
    expected = f"-m sparsedet.cli bench {tmp_path}/suite.yaml --only lamp --output {tmp_path}/run --device cpu"
    assert launch.calls()[1] == [*expected.split(), "--set", "seed=3", "--set", "lamp:training.steps=2"]
    assert capfd.readouterr() == ("", "printed\n" * 3)  # stdout is for the report
    assert len(json.loads((tmp_path / "run" / "suite.json").read_text())["experiments"]) == 3


def test_the_reason_of_an_experiment_decides_on_a_second_try(launch):
    away = {"type": "DatasetError", "message": "image away"}
    wrong = {"type": "TargetMatchError", "message": "no match"}
    with pytest.raises(SuiteError, match=r"got 1 that failed:\n  dense: no match\n  lamp: not run, since it starts"):
        launch(dense=[[1, wrong]], other=[[1, away]])
    assert launch.started() == ["dense", "other", "other"]


@pytest.mark.parametrize("code", [1, -9])
def test_an_end_without_a_reason_is_tried_once_more(launch, code):
    with pytest.raises(SuiteError, match=rf"other: expected its command to end well, got exit code {code} without"):
        launch(lamp=[[code, None]], other=[[code, None], [code, None]])
    assert launch.started() == ["dense", "lamp", "lamp", "other", "other"]


def test_a_reason_of_an_earlier_try_does_not_count(launch, tmp_path):
    (tmp_path / "run" / "tiny").mkdir(parents=True)
    (tmp_path / "run" / "tiny" / "error.json").write_text('{"type": "ConfigError", "message": "then"}')
    with pytest.raises(ProcessesError, match="got exit code 9 without a reason"):
        launch_suite(
            load_suite(tmp_path / "tiny.yaml"),
            CellCommand(tmp_path / "tiny.yaml", tmp_path / "run", "cpu"),
            [sys.executable, "-c", "import sys; sys.exit(9)"],
            Console(quiet=True),
        )


@pytest.mark.parametrize(
    "end", [[1, {"type": "Stopped", "message": "stopped here", "signal": 15}], [143, None], [-15, None]]
)
def test_an_experiment_that_was_stopped_ends_the_suite(launch, end):
    with pytest.raises(Stopped) as stopped:
        launch(lamp=[end])
    assert stopped.value.exit_code == 143
    assert launch.started() == ["dense", "lamp"]


def test_a_recipe_alone_fails_with_its_own_error(launch):
    with pytest.raises(DatasetError, match="image away"):
        launch("tiny.yaml", tiny=[[2, {"type": "DatasetError", "message": "image away"}]] * 2)
    with pytest.raises(ProcessesError, match="exit code 7 without a reason"):
        launch("tiny.yaml", tiny=[[7, None]] * 2)


def test_one_launcher_at_a_time(launch, tmp_path):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run"), pytest.raises(StorageError, match="got one in use by process"):
        launch()
    assert launch.started() == []


def hold(folder):
    """Hold the lock of a folder in another process."""
    script = (
        "import sys; from pathlib import Path; from sparsedet.common.lock import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process  # leaving its block closes stdin, which ends it


def test_a_fault_of_the_last_recipe_is_found_before_anything_is_started(launch, tmp_path):
    (tmp_path / "wrong.yaml").write_text(SUITE + "- {name: wrong, recipe: {base: tiny.yaml, data: {root: /nowhere}}}\n")
    with pytest.raises(DatasetError, match="/nowhere"):
        launch("wrong.yaml")
    assert launch.started() == []


def send(number, when):
    """Send this process a signal once `when` says so."""

    def wait():
        while not when():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait).start()


WAITING = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def note(number, frame):
    (folder / signal.Signals(number).name).touch()
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
(folder / "started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_and_waited_for(number, tmp_path):
    send(number, (tmp_path / "started").exists)
    with StopRequests() as stop:
        assert run_command([sys.executable, "-c", WAITING, str(tmp_path), "5"], stop) == 5
    assert (tmp_path / "SIGTERM").exists()  # also after a Ctrl-C
    assert not (tmp_path / "SIGINT").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the process is left to itself
def test_a_second_ctrl_c_passes_it_on_too_but_does_not_wait(tmp_path):
    stop = StopRequests()
    send(signal.SIGINT, (tmp_path / "started").exists)
    send(signal.SIGINT, lambda: stop.number is not None)
    with pytest.raises(KeyboardInterrupt), stop:
        run_command([sys.executable, "-c", WAITING, str(tmp_path), "5"], stop)
    while not (tmp_path / "SIGTERM").exists():  # else this test would not end
        time.sleep(0.01)


def test_a_request_between_two_experiments_starts_no_other(launch, monkeypatch):
    class Asked(StopRequests):
        def __enter__(self):
            self.number = signal.SIGINT
            return self

    monkeypatch.setattr("sparsedet.benchmark.launchers.StopRequests", Asked)
    with pytest.raises(Stopped, match="stopped by SIGINT at dense: the same command goes on") as stopped:
        launch()
    assert stopped.value.exit_code == 130
    assert launch.started() == []


def test_what_is_put_before_a_command():
    begin = [sys.executable, "-m", "torch.distributed.run"]
    assert prefix_of("torchrun", 8) == [*begin, "--nproc-per-node=8", "--standalone"]
    assert prefix_of("torchrun", None) == [*begin, "--nproc-per-node=1", "--standalone"]
    assert prefix_of("nice -n 5 'a b'", None) == ["nice", "-n", "5", "a b"]
    with pytest.raises(
        ConfigError, match=r"--launcher: expected 'torchrun', 'slurm' or a command .*, got 'torchrn --x'"
    ):
        prefix_of("torchrn --x", None)
    with pytest.raises(ConfigError, match="--processes: expected it with --launcher torchrun or slurm, got 'nice'"):
        prefix_of("nice", 8)


def test_the_lock_of_a_launcher_is_not_that_of_its_experiments(tmp_path):
    (tmp_path / "lamp").mkdir()
    with locked(tmp_path), hold(tmp_path / "lamp"), pytest.raises(StorageError), locked(tmp_path / "lamp"):
        pass
