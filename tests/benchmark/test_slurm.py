"""Jobs of Slurm, beside a stand-in for submitit that follows its documentation: Slurm itself is not there."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark import slurm
from sparsedet.benchmark.cells import SuiteError
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.launchers import CellCommand
from sparsedet.benchmark.slurm import SlurmCell, SlurmOptions, read_options, submit_suite
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.errors import ConfigError, MissingExtraError, ProcessesError
from sparsedet.common.stopping import Stopped

SUITE = """\
title: Tiny
experiments:
- {name: dense, recipe: tiny.yaml}
- {name: lamp, start: dense, recipe: tiny.yaml}
- {name: other, recipe: tiny.yaml}
- {name: tuned, start: lamp, recipe: tiny.yaml}
- {name: two-four, start: dense, recipe: tiny.yaml}
"""


class Job:
    state = "FAILED"

    def __init__(self, job_id, error):
        self.job_id = job_id
        self.paths = SimpleNamespace(stderr=f"{job_id}.err")
        self._error = error

    def exception(self):
        return self._error


@pytest.fixture
def submitit(monkeypatch, tmp_path):
    """Stand-in for the package; its `arrays` are what was submitted, `errors` those of experiments by name.

    A `squeue` lists the jobs whose error is "never", from a file.
    """
    module = SimpleNamespace(arrays=[], errors={}, refuses=None, runs=lambda: None, queue=tmp_path / "queue.txt")
    module.queue.touch()
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--me --array --noheader --format=%i" ] && cat {module.queue}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0)

    class AutoExecutor:
        def __init__(self, folder, cluster=None, **kwargs):
            self.made = (str(folder), cluster, kwargs)

        def update_parameters(self, **parameters):
            self.parameters = parameters

        def map_array(self, function, *arguments):
            if module.refuses:
                raise module.refuses
            number = 100 + len(module.arrays)
            calls = list(zip(*arguments, strict=True))
            pickle.dumps((function, calls))
            module.runs()
            module.arrays.append((self.made, self.parameters, function, calls))
            names = [call[0][call[0].index("--only") + 1] for call in calls]
            jobs = [Job(f"{number}_{index}", module.errors.get(name)) for index, name in enumerate(names)]
            with module.queue.open("a") as queue:
                queue.writelines(f"{job.job_id}\n" for job in jobs if job.exception() == "never")
            return jobs

    class DelayedSubmission:
        def __init__(self, function, *arguments, **kwargs):
            self.function, self.args, self.kwargs = function, arguments, kwargs

    module.AutoExecutor = AutoExecutor
    module.JobEnvironment = lambda: SimpleNamespace(job_id="41234_7", hostnames=["node5", "node6"])
    module.helpers = SimpleNamespace(DelayedSubmission=DelayedSubmission)
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
    return module


@pytest.fixture
def submit(tiny_recipe, tmp_path):
    """Function that submits `SUITE`; `said` is what the user was told."""
    (tmp_path / "suite.yaml").write_text(SUITE)

    def run(device="cuda", nodes=2, processes=8, **options):
        command = CellCommand(tmp_path / "suite.yaml", tmp_path / "run", device, ("seed=3",))
        console = Console(rich=RichConsole(file=run.said, soft_wrap=True))
        submit_suite(
            load_suite(tmp_path / "suite.yaml", ("seed=3",)), command, SlurmOptions(nodes, processes, options), console
        )

    run.said = StringIO()
    return run


def names(array):
    return [arguments[arguments.index("--only") + 1] for (arguments,) in array[3]]


def test_experiments_of_one_start_are_an_array_that_waits_for_it(submit, submitit, tmp_path):
    submit(time="1440", partition="big", **{"cpus-per-task": "32", "array-parallelism": "4"})
    assert [names(array) for array in submitit.arrays] == [["dense", "other"], ["lamp", "two-four"], ["tuned"]]
    assert [array[1].pop("slurm_additional_parameters") for array in submitit.arrays] == [
        {"partition": "big"},
        {"partition": "big", "dependency": "afterok:100_0", "kill-on-invalid-dep": "yes"},
        {"partition": "big", "dependency": "afterok:101_0", "kill-on-invalid-dep": "yes"},
    ]
    for made, parameters, function, calls in submitit.arrays:
        assert made == (f"{tmp_path}/run/slurm", "slurm", {"slurm_max_num_timeout": 1000})
        assert parameters == {
            "name": "Tiny",
            "nodes": 2,
            "tasks_per_node": 1,
            "gpus_per_node": 8,
            "timeout_min": 1440,
            "cpus_per_task": 32,
            "slurm_array_parallelism": 4,
        }
        assert function == SlurmCell(2, 8)
        assert all(arguments[-2:] == ["--set", "seed=3"] for (arguments,) in calls)
    assert "lamp: job 101_0, after 100_0\n" in submit.said.getvalue()
    assert "tuned: finished\n" in submit.said.getvalue()


def test_finished_experiments_are_not_submitted_and_not_waited_for(submit, submitit, tmp_path):
    run_suite(
        load_suite(tmp_path / "suite.yaml", ("seed=3",)), tmp_path / "run", "cpu", Console(quiet=True), only="dense"
    )
    submit("cpu", 1, 1, time="5")
    assert [names(array) for array in submitit.arrays] == [["lamp", "other", "two-four"], ["tuned"]]
    assert submitit.arrays[0][1]["slurm_additional_parameters"] == {}
    assert "gpus_per_node" not in submitit.arrays[0][1]


def test_failed_jobs_are_named_with_what_starts_from_them(submit, submitit, tmp_path):
    submitit.errors = {"lamp": RuntimeError("out of memory"), "tuned": "never", "two-four": RuntimeError("exit code 1")}
    for name in ("lamp", "two-four"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "error.json").write_text('{"type": "ConfigError", "message": "of an earlier try"}')
    error = '{"type": "ConfigError", "message": "data: wrong"}'
    submitit.runs = lambda: (tmp_path / "run" / "two-four" / "error.json").write_text(error)
    with pytest.raises(SuiteError) as failed:
        submit(time="5")
    assert str(failed.value).splitlines()[:-1] == [
        "suite: expected all 5 experiments to finish, got 2 that failed:",
        "  lamp: job 101_0: expected it to end well, got state FAILED without a reason. See its log in 101_0.err.",
        "  two-four: data: wrong",
        "  tuned: not run, since it starts from lamp",
    ]
    assert "warning: lamp: job 101_0 has failed, its log is in 101_0.err\n" in submit.said.getvalue()


def test_a_request_to_stop_ends_the_waiting_only(submit, submitit, monkeypatch):
    def interrupt(seconds):
        signal.raise_signal(signal.SIGINT)

    submitit.errors = {"tuned": "never"}
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    with pytest.raises(Stopped, match=r"the jobs go on, .* scancel 102_0$") as stopped:
        submit(time="5")
    assert stopped.value.exit_code == 130


def test_a_job_that_slurm_queues_again_is_waited_for(submit, submitit, monkeypatch):
    submitit.errors = {"other": RuntimeError("lost a machine")}
    submitit.runs = lambda: submitit.queue.write_text("100_1\n")
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 5:
            submitit.queue.unlink()  # squeue fails
        if len(waits) == 8:
            submitit.queue.write_text("")

    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    with pytest.raises(SuiteError, match="other: job 100_1: expected it to end well, got state FAILED"):
        submit(time="5")
    assert len(waits) == 8
    assert submit.said.getvalue().count("warning: squeue did not answer, asked again in 0 s: ") == 3


@pytest.mark.parametrize("error", [RuntimeError('Could not detect "srun"'), subprocess.CalledProcessError(1, "sbatch")])
def test_what_slurm_refuses_is_said(submit, submitit, error):
    submitit.refuses = error
    with pytest.raises(ConfigError, match=r"expected jobs that Slurm accepts, got '.*s.*'\. .*submitted: none"):
        submit(time="5")


def test_without_submitit(submit, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"expected the package submitit, .* pip install 'sparsedet\[slurm\]'"):
        submit(time="5")
    assert not (tmp_path / "run").exists()


def test_options_of_sbatch():
    given = ("time=60", "--gpus_per_node=4", "comment=a=b")
    assert read_options(given) == {"time": "60", "gpus-per-node": "4", "comment": "a=b"}
    for wrong in ("time", "=5", "dependency=afterok:1", "nodes=2"):
        with pytest.raises(ConfigError, match=f"expected KEY=VALUE with an option of sbatch .*, got '{wrong}'"):
            read_options(("time=60", wrong))
    with pytest.raises(ConfigError, match="expected a whole number of minutes for 'time', got '24:00:00'"):
        read_options(("time=24:00:00",))
    with pytest.raises(ConfigError, match="expected a whole number for 'cpus-per-task', got 'x'"):
        read_options(("cpus-per-task=x",))
    with pytest.raises(ConfigError, match="expected the time limit of a job in minutes, got none"):
        read_options(())


@pytest.fixture
def torchrun(monkeypatch):
    """Stand-in for `torchrun`, which ends with the next of `codes`; `commands` are the arguments it got."""

    def start(*arguments):
        start.commands.append(arguments)
        return [sys.executable, "-c", f"import sys; sys.exit({start.codes[len(start.commands) - 1]})"]

    start.commands = []
    monkeypatch.setattr(slurm, "torchrun", start)
    return start


def test_a_job_starts_torchrun_on_each_of_its_machines_and_once_more_where_it_fails(submitit, torchrun):
    torchrun.codes = (0, 1, 1)
    SlurmCell(1, 4)(["-m", "sparsedet.cli"])
    with pytest.raises(ProcessesError, match="got exit code 1"):
        SlurmCell(2, 8)(["-m", "sparsedet.cli"])
    first, *others = torchrun.commands
    assert first == (4, "--standalone")
    for attempt, port, command in zip((0, 1), (22468, 22469), others, strict=True):  # 2 * 41234 + attempt, and so on
        meet = (f"--rdzv-id=41234_7-{attempt}", f"--rdzv-endpoint=node5:{port}", "--rdzv-conf=read_timeout=600")
        assert command == (8, "--nnodes=2", "--rdzv-backend=c10d", *meet)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_that_is_ended_is_not_started_again(submitit, torchrun, monkeypatch, number):
    torchrun.codes, handled = (1, 0), []
    ran = SlurmCell._run
    monkeypatch.setattr(SlurmCell, "_run", lambda *call: (signal.raise_signal(number), ran(*call))[1])
    before = signal.signal(number, lambda number, frame: handled.append(number))
    handler = signal.getsignal(number)
    try:
        with pytest.raises(ProcessesError, match="got exit code 1"):
            SlurmCell(1, 1)([])
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert handled == [number]
    assert len(torchrun.commands) == 1


SAVING = """
import signal, sys, time
from pathlib import Path
def save(number, frame):
    time.sleep(0.3)
    Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "started").touch()
time.sleep(60)
"""


def test_a_job_whose_time_is_up_saves_and_is_queued_again(submitit, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "torchrun", lambda *_: [sys.executable, "-c", SAVING])
    cell, arguments, delayed = SlurmCell(1, 1), [str(tmp_path)], []

    def time_is_up(number, frame):  # as submitit's own handler: it asks for what to queue again, and ends the process
        delayed.append(cell.checkpoint(arguments))
        assert (tmp_path / "saved").exists()
        raise SystemExit

    def send():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.killpg(cell._process.pid, signal.SIGUSR2)  # Slurm signals all; what it runs goes on
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, time_is_up)
    try:
        threading.Thread(target=send).start()
        with pytest.raises(SystemExit):
            cell(arguments)
    finally:
        signal.signal(signal.SIGUSR2, before)
    (again,) = delayed
    assert pickle.loads(pickle.dumps(again.function)) == SlurmCell(1, 1)
    assert again.args == (arguments,)


def test_a_job_whose_time_is_up_before_it_has_begun_is_queued_again(submitit):
    assert SlurmCell(1, 1).checkpoint(["x"]).args == (["x"],)
