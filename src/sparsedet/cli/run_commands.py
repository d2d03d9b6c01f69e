"""Commands that run something: demo, train, bench, eval, report."""

import atexit
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Config, Device, DryRun, Json, Measure, Output, Overrides, Seed, overrides
from sparsedet.cli.printing import print_table, warn
from sparsedet.common.errors import escape


class Format(StrEnum):
    """Formats of a report."""

    RST = "rst"
    MD = "md"
    CSV = "csv"
    HTML = "html"


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (demo, train, bench, report):
        app.command()(command)
    app.command("eval")(evaluate)


def demo(
    output: Output = None,
    device: Device = "auto",
    seed: Seed = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run the main job on the embedded data set: dense, 30 to 90 % and 2:4, table, plots, report."""
    from sparsedet.detection.data.digit_scenes import make_digit_scenes

    folder = output or Path("runs/demo")
    root = make_digit_scenes(folder / "data")
    _run("demo", (f"data.root={root}", *overrides(set_, seed)), folder, device, as_json)


def train(
    recipe: Config,
    output: Output = None,
    device: Device = "auto",
    seed: Seed = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    measure: Measure = False,
) -> None:
    """Train one recipe, level by level where it prunes; the same command goes on after an interruption."""
    bench(recipe, output, device, seed, set_, dry_run, as_json, measure)


def bench(
    suite: Config,
    output: Output = None,
    device: Device = "auto",
    seed: Seed = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    measure: Measure = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="NAME", help="Run one experiment; others may run into the same folder meanwhile."
        ),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="Start each experiment by a command of its own: torchrun, slurm, or what to put before it."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each machine, with --launcher torchrun or slurm.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines of each job, with --launcher slurm.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar="KEY=VALUE", help="Option of sbatch, such as time=1440 (minutes)."),
    ] = None,
) -> None:
    """Run all experiments of a suite, then write its report; the same command goes on after an interruption."""
    changes = overrides(set_, seed)
    launch = Launch(launcher or "", processes, nodes, tuple(slurm or ()))
    launch.check(only)
    if dry_run or measure:
        _plan(suite, changes, output, device, measure, as_json)
    elif launcher is None:
        _run(suite, changes, output, device, as_json, only)
    else:
        _launch(suite, changes, output, device, as_json, launch)


@dataclass(frozen=True)
class Launch:
    """What the options say about how experiments are started; an empty launcher is none."""

    launcher: str
    processes: int | None
    nodes: int | None
    slurm: tuple[str, ...]

    def check(self, only: str | None) -> None:
        """Raise ConfigError where an option stands without the launcher that it is for."""
        from sparsedet.common.errors import ConfigError

        if self.launcher != "slurm" and (self.nodes is not None or self.slurm):
            raise ConfigError("--nodes, --slurm: expected them with --launcher slurm, got another. Leave them out.")
        if self.processes is not None and not self.launcher:
            raise ConfigError("--processes: expected it with --launcher, got none. Add --launcher torchrun.")
        if self.launcher and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError("--launcher: expected one process, got several. Leave it out under torchrun.")
        if self.launcher and only is not None:
            raise ConfigError("--launcher: expected a whole suite, got --only, which runs here. Leave out one of them.")


def _launch(
    name: str, changes: tuple[str, ...], output: Path | None, device: str, as_json: bool, launch: Launch
) -> None:
    from sparsedet.benchmark.cells import SuiteError
    from sparsedet.benchmark.console import Console
    from sparsedet.benchmark.launchers import CellCommand, launch_suite, prefix_of
    from sparsedet.benchmark.suite import load_suite
    from sparsedet.common.shipped import find_config

    path = find_config(name)
    command = CellCommand(path, output or Path("runs") / path.stem, device, changes)
    suite, console = load_suite(path, changes), Console()
    with _ending_well(command.folder):
        try:
            if launch.launcher == "slurm":
                from sparsedet.benchmark.slurm import SlurmOptions, read_options, submit_suite

                options = SlurmOptions(launch.nodes or 1, launch.processes or 1, read_options(launch.slurm))
                submit_suite(suite, command, options, console)
            else:
                launch_suite(suite, command, prefix_of(launch.launcher, launch.processes), console)
        except SuiteError:
            _report(command.folder, as_json)
            raise
    _report(command.folder, as_json)


def _plan(name: str, changes: tuple[str, ...], output: Path | None, device: str, measures: bool, as_json: bool) -> None:
    from sparsedet.benchmark.plan import plan, summary
    from sparsedet.benchmark.suite import load_suite
    from sparsedet.common.processes import is_first, leave_processes
    from sparsedet.common.shipped import find_config

    path = find_config(name)
    suite = load_suite(path, changes)
    warnings: list[str] = []
    rows = plan(suite, warnings.append)
    if measures:
        from sparsedet.benchmark.timing import add_hours

        add_hours(rows, suite, device)
    speaks = is_first()
    leave_processes()
    if not speaks:
        return
    for warning in warnings:
        warn(warning)
    if as_json:
        print(json.dumps(rows))
        return
    print_table(rows)
    for line in summary(rows, suite, output or Path("runs") / path.stem):
        print(line)
    for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True):
        for key, reason in loaded.recipe.assumed.items():
            print(escape(f"{entry.name}: assumed: {key}: {reason}"))


def _run(
    name: str, changes: tuple[str, ...], output: Path | None, device: str, as_json: bool, only: str | None = None
) -> None:
    from sparsedet.benchmark.cells import SuiteError
    from sparsedet.benchmark.console import Console
    from sparsedet.benchmark.suite import load_suite, run_suite
    from sparsedet.common.processes import is_first, leave_processes
    from sparsedet.common.shipped import find_config

    path = find_config(name)
    folder = output or Path("runs") / path.stem
    speaks = True
    with _ending_well(folder):
        try:
            with _talk_on_stderr():
                run_suite(load_suite(path, changes), folder, device, Console(), only)
            speaks = is_first()
            leave_processes()
        except SuiteError:
            _report(folder, as_json, only)
            raise
    if speaks:
        _report(folder, as_json, only)


@contextmanager
def _talk_on_stderr() -> Iterator[None]:
    """Have trackers print on stderr, since stdout is for results; some of them print as the process ends, too."""
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            atexit.register(_leave_stdout)  # is called before what trackers have registered


def _leave_stdout() -> None:
    sys.stdout.flush()
    sys.stdout = sys.stderr


@contextmanager
def _ending_well(folder: Path) -> Iterator[None]:
    """Turn requests to stop into a line on stderr and their exit code."""
    from sparsedet.common.processes import is_first
    from sparsedet.common.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        if is_first():
            print(stopped, file=sys.stderr)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        print(
            f"interrupted: what is finished stays in {folder}, the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def _report(folder: Path, as_json: bool, only: str | None = None) -> None:
    """Write the report of what is finished, and print it, unless it is one of several experiments that run at once."""
    from sparsedet.common.lock import FILES_LOCK, locked
    from sparsedet.report import render, write_report
    from sparsedet.report.run import load_run

    with locked(folder, FILES_LOCK, waits=True):  # so that the last one to write has seen the records of all
        files = write_report(folder)
    if as_json:
        run = load_run(folder)
        records = [record for record in run.records if only in (None, record.experiment)]
        print(json.dumps([record.model_dump(mode="json") for record in records]))
    elif only is None:
        print(render(folder, "rst"), end="")
    print("written: " + ", ".join(str(file) for file in files), file=sys.stderr)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")],
    detections: Annotated[
        Path | None, typer.Option(help="Evaluate this COCO results file instead of running the detector.")
    ] = None,
    save_detections: Annotated[Path | None, typer.Option(help="Write the detections as COCO results JSON.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show each class.")] = False,
    max_detections: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Also show AP and recall at so many detections per image and class (COCO: 100)."),
    ] = None,
    device: Device = "auto",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint on its validation split (or another: --set data.root=… data.val.annotations=…)."""
    from sparsedet.benchmark.evaluation import evaluate_checkpoint_in_detail

    limits = tuple(max_detections or ())
    changes = overrides(set_)
    detail, interval = evaluate_checkpoint_in_detail(checkpoint, changes, device, detections, save_detections, limits)
    if as_json:
        more = {"per_class": detail.per_class, "at_max_detections": detail.at_max_detections}
        print(json.dumps({**detail.metrics, "ap_interval": interval, **more}))
        return
    for name, value in detail.metrics.items():
        key = name.replace("ar100", "ar")  # without the limit, as it is called at another one
        others = "".join(
            f"   at {limit}: {metrics[key]:.4f}"
            for limit, metrics in detail.at_max_detections.items()
            if key in metrics
        )
        sureness = f"   95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if name == "ap" and interval else ""
        print(f"{name:<10} {value:.4f}{others}{sureness}")
    if per_class:
        hidden = ("category_id", "ar1", "ar10")
        rows = [{key: value for key, value in row.items() if key not in hidden} for row in detail.per_class]
        print_table([{"class": row.pop("name"), "objects": row.pop("num_objects"), **row} for row in rows])


def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    format_: Annotated[
        Format,
        typer.Option("--format", help="rst starts with the published layout; html is one self-contained file."),
    ] = Format.RST,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; the default prints, and html goes to RUN_DIR/report.html."),
    ] = None,
) -> None:
    """Print or write the tables, plots and pictures of a run, finished or not."""
    from sparsedet.common.files import write_text
    from sparsedet.report import render

    text = render(run_dir, format_.value)
    if output is None and format_ is Format.HTML:
        output = run_dir / "report.html"
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
        print(output)
