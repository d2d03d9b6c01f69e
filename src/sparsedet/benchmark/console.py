"""What a run says while it goes: live progress on a terminal, plain lines elsewhere. All of it on stderr."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sparsedet.benchmark.log_file import LogFile, open_log
from sparsedet.benchmark.upstream.note import Note
from sparsedet.common.errors import escape_lines
from sparsedet.detection.trainer import StepReport
from sparsedet.report.record import Record

ROW = "{:<18} {:>8} {:>9} {:>9} {:>7} {:>7} {:>9} {:>7} {:>8}"

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=8),
    MofNCompleteColumn(),
    TextColumn("{task.fields[detail]}"),
    TimeRemainingColumn(),
    TextColumn("left"),
)


class Console:
    """Prints the progress of runs.

    Args:
        quiet: say nothing but warnings.
        rich: where to print, default stderr.
    """

    def __init__(self, quiet: bool = False, rich: RichConsole | None = None) -> None:
        self.quiet = quiet
        self._rich = rich or RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._log: LogFile | None = None

    @classmethod
    def silent(cls) -> Self:
        """Return one that prints nothing at all, for processes that leave speaking to the first."""
        return cls(quiet=True, rich=RichConsole(quiet=True))

    @contextmanager
    def logging(self, path: Path) -> Iterator[None]:
        """Write all that is said, also quietly, to the log at `path`, and what error ends it."""
        with open_log(path, self.warn) as self._log:
            try:
                yield
            finally:
                self._log = None

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        text = escape_lines(text)
        self._write(text)
        if not self.quiet:
            self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, always."""
        text = escape_lines(f"warning: {text}")
        self._write(text)
        self._rich.print(text, markup=False)

    def notes(self, name: str, notes: tuple[Note, ...]) -> None:
        """Print which keys of another project's file have no effect, and how many are mapped."""
        mapped = sum(note.outcome == "mapped" for note in notes)
        if notes:
            self.say(f"{name}: {mapped} keys mapped, see sparsedet config translate")
        for note in notes:
            if note.outcome != "mapped":
                self.say(f"{name}: {note.key}: {note.outcome}: {note.text}")

    def records_header(self) -> None:
        """Print the head of the table that `record` adds rows to."""
        self.say(
            ROW.format("experiment", "asked", "measured", "pruned AP", "AP", "AP50", "MACs kept", "loss", "seconds")
        )

    def record(self, record: Record) -> None:
        """Print one row of the table: a level that is finished."""
        after = (record.ap_after_pruning, record.ap_after_reestimation)
        pruned = " > ".join(f"{ap:.3f}" for ap in after if ap is not None) or "-"
        asked = "-" if record.target_sparsity is None else f"{record.target_sparsity:.0%}"
        loss = "-" if record.loss is None else f"{record.loss:.3f}"
        row = (record.experiment, asked, f"{record.measured_sparsity:.2%}", pruned, f"{record.metrics['ap']:.3f}",
               f"{record.metrics['ap50']:.3f}", f"{record.macs_kept:.1%}", loss, f"{record.seconds:.1f}")  # fmt: skip
        self.say(ROW.format(*row))

    @contextmanager
    def training(
        self, label: str, log_every: int, suite_seconds: Callable[[StepReport], float | None] = lambda _: None
    ) -> Iterator[Callable[[StepReport, float], None]]:
        """Show the steps of one level; yields a function of the step and the sparsity of the model.

        `suite_seconds` returns how long the suite still takes, where that is known.
        """

        def left(step: StepReport) -> str:
            seconds = suite_seconds(step)
            suite = "" if seconds is None else f", suite {_duration(seconds)}"
            return f"left: level {_duration(step.seconds_left_in_level)}, run {_duration(step.seconds_left)}{suite}"

        if self.quiet or not self._rich.is_terminal:
            yield _lines(label, log_every, left, self.say)
            return
        write = _lines(label, log_every, left, self._write)
        with _Training(*_COLUMNS[:4], console=self._rich, transient=True) as progress:
            task = progress.add_task(label, total=None, detail="")

            def show(step: StepReport, sparsity: float) -> None:
                write(step, sparsity)
                progress.line = f"  {_numbers(step, sparsity)}"
                progress.update(task, completed=step.step + 1, total=step.total_steps, detail=left(step))

            yield show

    @contextmanager
    def counting(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of `total` images are done and at what rate; yields a function of the number done."""
        began = time.perf_counter()

        def rate(done: int) -> str:
            return f"{done / max(time.perf_counter() - began, 1e-9):.1f} images/s"

        def line(done: int) -> None:
            if done * 10 // total > (done - 1) * 10 // total:  # ten lines in all
                self.say(f"  {label} {done}/{total} images, {rate(done)}")

        if self.quiet or not self._rich.is_terminal:
            yield line
            return
        with Progress(*_COLUMNS, console=self._rich, transient=True) as progress:
            task = progress.add_task(label, total=total, detail="")
            yield lambda done: progress.update(task, completed=done, detail=rate(done))
        self.say(f"  {label} {total} images, {rate(total)}")

    def _write(self, text: str) -> None:
        if self._log is not None:
            self._log.write(text)


class _Training(Progress):
    """A bar, and below it a line of numbers."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and the line."""
        yield from super().get_renderables()
        yield Text(self.line, no_wrap=False, overflow="fold")  # the console cuts lines off


def _lines(
    label: str, log_every: int, left: Callable[[StepReport], str], say: Callable[[str], None]
) -> Callable[[StepReport, float], None]:
    def show(step: StepReport, sparsity: float) -> None:
        if (step.step + 1) % (log_every * 10) == 0 or step.step + 1 == step.total_steps:
            say(f"  {label} step {step.step + 1}/{step.total_steps} {_numbers(step, sparsity)}; {left(step)}")

    return show


def _numbers(step: StepReport, sparsity: float) -> str:
    terms = " + ".join(f"{name.removesuffix('_loss')} {value:.3g}" for name, value in step.terms.items())
    memory = "" if step.peak_memory_bytes is None else f", {step.peak_memory_bytes / 2**30:.1f} GiB"
    return (
        f"loss {step.loss:.3f}{f' = {terms}' if len(step.terms) > 1 else ''} lr {step.lr:.2g} sparsity {sparsity:.1%} "
        f"{step.images_per_second:.3g} images/s, {step.data_wait_share:.0%} waiting for data{memory}"
    )


def _duration(seconds: float) -> str:
    """Return a time in the two largest units that it has, such as ``3 h 05 min``."""
    whole = round(seconds)
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02} {small}"
    return f"{whole} s"
