"""Each experiment of a suite in a command of its own: `torchrun` or whatever the user puts before it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsedet.benchmark.cells import forget_error, noted_error, run_cells
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.experiment import is_finished
from sparsedet.benchmark.suite import Suite, open_folder
from sparsedet.common.errors import ConfigError, ProcessesError
from sparsedet.common.stopping import Stopped, StopRequests

PASSED_ON = (143, 130, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a command that was asked to stop."""
GRACE_SECONDS = 600
"""How long `torchrun`, where it is new enough to know `TORCH_ELASTIC_SHUTDOWN_TIMEOUT`, waits for a checkpoint."""


@dataclass(frozen=True)
class CellCommand:
    """The command line that runs one experiment of a suite, but for what starts its processes.

    Attributes:
        suite: the suite's file.
        folder: the suite's run folder.
        device: as the command line takes it.
        overrides: ``key=value`` as of ``--set``.
    """

    suite: Path
    folder: Path
    device: str
    overrides: tuple[str, ...] = ()

    def arguments(self, name: str) -> list[str]:
        """Return what stands behind ``torchrun`` or ``python`` to run the experiment `name`."""
        changes = [part for override in self.overrides for part in ("--set", override)]
        places = ["--output", str(self.folder.resolve()), "--device", self.device]
        return ["-m", "sparsedet.cli", "bench", str(self.suite.resolve()), "--only", name, *places, *changes]


def torchrun(num_processes: int, *more: str) -> list[str]:
    """Return the beginning of a command that starts so many processes on this machine; `more` are other options."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_processes}", *more]


def with_grace() -> dict[str, str]:
    """Return the environment in which a `torchrun` waits long enough for a checkpoint."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS), **os.environ}


def prefix_of(launcher: str, num_processes: int | None) -> list[str]:
    """Return what ``--launcher`` stands for: ``torchrun`` with its number of processes, or the words of a command.

    Raises:
        ConfigError: there is no such command, or it was given a number of processes, which it would have to say itself.
    """
    if launcher == "torchrun":
        return torchrun(num_processes or 1, "--standalone")
    words = shlex.split(launcher)
    if num_processes is not None:
        raise ConfigError(
            f"--processes: expected it with --launcher torchrun or slurm, got '{launcher}'. "
            "Write the number into the command."
        )
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(
            f"--launcher: expected 'torchrun', 'slurm' or a command to put before '-m sparsedet.cli …', "
            f"got '{launcher}'. Check the name, and that it is installed."
        )
    return words


def launch_suite(suite: Suite, command: CellCommand, prefix: list[str], console: Console) -> None:
    """Run what of `suite` is not finished, each experiment in a command of its own.

    Raises:
        StorageError: another run writes to the folder.
        Stopped: SIGTERM or Ctrl-C asked for it; it was passed on, and the experiment has saved its state.
        SuiteError: some of several experiments have failed.
        SparseDetError: the only one has failed, or the suite cannot be run.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests(lambda _: console.say(_STOPPING)))
        open_folder(suite, command.folder, stack)

        def attempt(name: str) -> None:
            job = suite.job(name, command.folder, torch.device("cpu"), console, stop)
            if is_finished(job):
                console.say(f"{name}: finished before, nothing to do")
            else:
                forget_error(job.folder)
                _run(name, [*prefix, *command.arguments(name)], job.folder, stop)

        run_cells(suite.config.experiments, attempt, console)


_STOPPING = "stopping: waiting for the experiment's checkpoint; Ctrl-C again does not wait for it"


def _run(name: str, command: list[str], folder: Path, stop: StopRequests) -> None:
    code = None if stop.number is not None else run_command(command, stop)
    if stop.number is not None:
        raise Stopped(
            f"stopped by {signal.Signals(stop.number).name} at {name}: the same command goes on from its checkpoint",
            stop.number,
        )
    if code == 0:
        return
    error = noted_error(folder)
    if error is None and code in PASSED_ON:
        error = Stopped(f"{name} was stopped: the same command goes on from its last checkpoint", signal.SIGTERM)
    raise error or ProcessesError(
        f"{name}: expected its command to end well, got exit code {code} without a reason. See what it has said; "
        "the same command goes on from its last checkpoint."
    )


def run_command(command: list[str], stop: StopRequests) -> int:
    """Run a command in a process group of its own and return its exit code; a request to stop is passed on to it.

    A Ctrl-C of the terminal, which would reach `torchrun` and its processes each by itself, does not reach them: they
    get one SIGTERM. What it prints goes to stderr.
    """
    process = subprocess.Popen(command, start_new_session=True, stdout=sys.__stderr__, env=with_grace())
    try:
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                if stop.number is not None:
                    break
        os.killpg(process.pid, signal.SIGTERM)
        return process.wait()
    except KeyboardInterrupt:  # the second one
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        raise
