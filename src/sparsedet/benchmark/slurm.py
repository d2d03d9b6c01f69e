"""Each experiment of a suite in a job of Slurm, submitted with submitit (the extra ``slurm``)."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sparsedet.benchmark.cells import Failures, forget_error, noted_error
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.experiment import is_finished
from sparsedet.benchmark.launchers import GRACE_SECONDS, CellCommand, torchrun, with_grace
from sparsedet.benchmark.suite import Suite, SuiteEntry, open_folder
from sparsedet.common.errors import ConfigError, MissingExtraError, ProcessesError
from sparsedet.common.stopping import Stopped, StopRequests

LOGS_FOLDER = "slurm"
POLL_SECONDS = 1.0
QUEUE_SECONDS = 15.0
"""How long what `squeue` has said is taken to hold: it is a load on all users of a cluster."""
NUMBERS = {  # options that submitit has to know as numbers, by the names of sbatch
    "time": "timeout_min",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "array-parallelism": "slurm_array_parallelism",
}
MAX_ATTEMPTS = 2
MAX_TIMEOUTS = 1000
"""How often a job that ran out of its time is queued again; submitit stops at three."""


@dataclass
class SlurmCell:
    """What a job runs on each of its machines: `torchrun`, which finds those of the other machines.

    Attributes:
        num_nodes: machines of the job.
        num_processes: on each of them.
    """

    num_nodes: int
    num_processes: int
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False, repr=False)
    _is_ending: bool = field(default=False, init=False, repr=False)

    def __call__(self, arguments: list[str]) -> None:
        """Run the command of an experiment; one that fails is started once more, on all machines at a time.

        Not by `torchrun` itself (``--max-restarts``): its machines notice a lost process one after another, and those
        that start again first look in vain for processes of the old ones. Here they all end, and meet anew.

        Raises:
            ProcessesError: it has failed again, or the job is cancelled or its time is up.
        """
        for attempt in range(MAX_ATTEMPTS):
            with self._noting_signals():
                code = self._run([*torchrun(self.num_processes, *self._meeting(attempt)), *arguments])
            if code == 0:
                return
            if self._is_ending:
                break
        raise ProcessesError(f"job: expected torchrun to end well, got exit code {code}. See what it has said.")

    def _meeting(self, attempt: int) -> list[str]:
        """Return the options by which the machines of the job find each other."""
        import submitit

        if self.num_nodes == 1:
            return ["--standalone"]
        job = submitit.JobEnvironment()
        port = 20000 + (MAX_ATTEMPTS * int(str(job.job_id).split("_")[0]) + attempt) % 40000
        options = [f"--nnodes={self.num_nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job.job_id}-{attempt}"]
        return [*options, f"--rdzv-endpoint={job.hostnames[0]}:{port}", f"--rdzv-conf=read_timeout={GRACE_SECONDS}"]

    def _run(self, command: list[str]) -> int:
        with subprocess.Popen(
            command, start_new_session=True, preexec_fn=_leave_signals_of_slurm, env=with_grace()
        ) as process:
            self._process = process
            return process.wait()

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Note signals that submitit handles: ``scancel``, time is up. They reach `torchrun` by themselves."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
        handlers = {number: handler for number, handler in before.items() if callable(handler)}

        def note(number: int, frame: FrameType | None) -> None:
            self._is_ending = True
            handlers[signal.Signals(number)](number, frame)

        for number in handlers:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def checkpoint(self, arguments: list[str]) -> Any:
        """Called by submitit, in the handler of a signal, when the time is nearly up: let the state be saved.

        Returns:
            What is queued again.
        """
        import submitit

        if self._process is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.killpg(self._process.pid, signal.SIGTERM)
                # The interrupted wait holds Popen's lock: this one leaves the exit status to it.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmCell(self.num_nodes, self.num_processes), arguments)


@dataclass(frozen=True)
class SlurmOptions:
    """How jobs are submitted.

    Attributes:
        num_nodes: machines of each job.
        num_processes: on each machine; also its GPUs, unless `options` say otherwise or none is wanted.
        options: of sbatch, by name without dashes.
    """

    num_nodes: int
    num_processes: int
    options: dict[str, str]

    def parameters(self, suite: str, device: str, start_job: str | None) -> dict[str, Any]:
        """Return what ``update_parameters`` of submitit takes for jobs that wait for `start_job`."""
        parameters: dict[str, Any] = {"name": suite, "nodes": self.num_nodes, "tasks_per_node": 1}
        if device != "cpu":
            parameters["gpus_per_node"] = self.num_processes
        more: dict[str, str] = {}
        for key, value in self.options.items():
            if key in NUMBERS:
                parameters[NUMBERS[key]] = int(value)
            else:
                more[key] = value
        if start_job is not None:
            more |= {"dependency": f"afterok:{start_job}", "kill-on-invalid-dep": "yes"}
        return {**parameters, "slurm_additional_parameters": more}


def read_options(values: Sequence[str]) -> dict[str, str]:
    """Return ``KEY=VALUE`` options of sbatch by key.

    Raises:
        ConfigError: one has another form, is no number where one is needed, or is for us to set; or the time is
            missing, which submitit takes to be five minutes.
    """
    options: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        key = key.removeprefix("--").replace("_", "-")
        if not (key and equals) or key in ("dependency", "nodes", "array", "ntasks-per-node"):
            raise ConfigError(
                f"--slurm: expected KEY=VALUE with an option of sbatch that is not set already, got '{text}'. "
                "Correct it; --nodes and --processes say how many."
            )
        if key in NUMBERS and not value.isdecimal():
            unit = " of minutes" if key == "time" else ""
            raise ConfigError(f"--slurm: expected a whole number{unit} for '{key}', got '{value}'. Correct it.")
        options[key] = value
    if "time" not in options:
        raise ConfigError(
            "--slurm: expected the time limit of a job in minutes, got none. Add --slurm time=MINUTES; "
            "a job that runs out of it saves its state and is queued again."
        )
    return options


def submit_suite(suite: Suite, command: CellCommand, options: SlurmOptions, console: Console) -> None:
    """Submit what of `suite` is not finished, one array for what has the same start, and wait for the jobs.

    Raises:
        MissingExtraError: submitit is not installed.
        StorageError: another run writes to the folder.
        ConfigError: Slurm is not there or refuses the options.
        Stopped: SIGTERM or Ctrl-C ended the waiting; the jobs go on.
        SuiteError: some experiments have failed.
    """
    submitit = _submitit()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests())
        open_folder(suite, command.folder, stack)
        cpu = torch.device("cpu")
        missing = [
            entry
            for entry in suite.config.experiments
            if not is_finished(suite.job(entry.name, command.folder, cpu, console, stop))
        ]
        jobs = _submit(submitit, suite, missing, command, options)
        for entry in missing:
            waits = f", after {jobs[entry.start].job_id}" if entry.start in jobs else ""
            console.say(f"{entry.name}: job {jobs[entry.name].job_id}{waits}")
        _wait(suite, jobs, command.folder, console, stop)


def _submit(
    submitit: Any, suite: Suite, missing: list[SuiteEntry], command: CellCommand, options: SlurmOptions
) -> dict[str, Any]:
    """Return the job of each experiment by its name."""
    names = [entry.name for entry in missing]
    for name in names:
        forget_error(command.folder / name)
    groups: dict[str | None, list[str]] = {}
    for entry in missing:
        groups.setdefault(entry.start if entry.start in names else None, []).append(entry.name)
    jobs: dict[str, Any] = {}
    try:
        for start, group in groups.items():  # a start comes earlier in the suite, so its own group does too
            executor = submitit.AutoExecutor(
                command.folder.resolve() / LOGS_FOLDER, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS
            )
            start_job = None if start is None else jobs[start].job_id
            executor.update_parameters(**options.parameters(suite.config.title, command.device, start_job))
            cell = SlurmCell(options.num_nodes, options.num_processes)
            found = executor.map_array(cell, [command.arguments(name) for name in group])
            jobs |= dict(zip(group, found, strict=True))
    except Exception as error:  # of submitit and of sbatch, which has many reasons to refuse
        submitted = ", ".join(str(job.job_id) for job in jobs.values()) or "none"
        raise ConfigError(
            f"--launcher: expected jobs that Slurm accepts, got '{str(error).strip()}'. Correct the options "
            f"of --slurm; jobs that were submitted: {submitted}."
        ) from error
    return jobs


def _wait(suite: Suite, jobs: dict[str, Any], folder: Path, console: Console, stop: StopRequests) -> None:
    failures = Failures(suite.config.experiments)
    waiting = [suite.entry(name) for name in jobs]
    queue = _Queue(console)
    while waiting:
        for entry in tuple(waiting):
            if failures.leaves_out(entry):
                waiting.remove(entry)
            elif queue.has_left(jobs[entry.name].job_id):
                waiting.remove(entry)
                _collect(entry.name, jobs[entry.name], folder / entry.name, failures, console)
        if waiting and stop.number is not None:
            ids = " ".join(str(jobs[entry.name].job_id) for entry in waiting)
            raise Stopped(
                f"stopped waiting; the jobs go on, and write the report when they end. To end them: scancel {ids}",
                stop.number,
            )
        if waiting:
            time.sleep(POLL_SECONDS)
    failures.check()


class _Queue:
    """Which jobs have ended, for good.

    Not by what `submitit` knows: a job that has lost a machine has failed by the states of `sacct`, and may have left
    an error as its result, while Slurm queues it again. And there are clusters without `sacct`.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._asked_at = -math.inf
        self._ids: set[str] | None = None

    def has_left(self, job_id: str) -> bool:
        """Tell whether a job is neither running nor waiting."""
        if time.monotonic() - self._asked_at >= QUEUE_SECONDS:
            self._ids = self._ask()
            self._asked_at = time.monotonic()
        return self._ids is not None and job_id not in self._ids

    def _ask(self) -> set[str] | None:
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            self._console.warn(f"squeue did not answer, asked again in {QUEUE_SECONDS:.0f} s: {error}")
            return None
        return set(done.stdout.split())


def _collect(name: str, job: Any, folder: Path, failures: Failures, console: Console) -> None:
    if job.exception() is None:
        console.say(f"{name}: finished")
        return
    failures.add(
        name,
        noted_error(folder)
        or ProcessesError(
            f"job {job.job_id}: expected it to end well, got state {job.state} without a reason. "
            f"See its log in {job.paths.stderr}."
        ),
    )
    console.warn(f"{name}: job {job.job_id} has failed, its log is in {job.paths.stderr}")


def _leave_signals_of_slurm() -> None:
    """Let `torchrun` live on when Slurm signals all processes of a job that its time is nearly up: we pass that on."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError(
            "--launcher slurm: expected the package submitit, got none. Install it with: pip install 'sparsedet[slurm]'"
        ) from error
    return submitit
