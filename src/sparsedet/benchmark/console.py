"""What a run says while it goes: live progress on a terminal, plain lines elsewhere. All of it on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparsedet.benchmark.upstream.note import Note
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

    @classmethod
    def silent(cls) -> Self:
        """Return one that prints nothing at all, for processes that leave speaking to the first."""
        return cls(quiet=True, rich=RichConsole(quiet=True))

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, always."""
        self._rich.print(f"warning: {text}", markup=False)

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
    def training(self, label: str, log_every: int) -> Iterator[Callable[[StepReport, float], None]]:
        """Show the steps of one level; yields a function of the step and the sparsity of the model."""
        if self.quiet:
            yield lambda step, sparsity: None
        elif self._rich.is_terminal:
            yield from self._live(label)
        else:
            yield self._lines(label, log_every)

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

    def _lines(self, label: str, log_every: int) -> Callable[[StepReport, float], None]:
        def show(step: StepReport, sparsity: float) -> None:
            if (step.step + 1) % (log_every * 10) == 0 or step.step + 1 == step.total_steps:
                left = (step.total_steps - step.step - 1) * step.batch_size / step.images_per_second
                self.say(
                    f"  {label} step {step.step + 1}/{step.total_steps} loss {step.loss:.3f} lr {step.lr:.2g} "
                    f"sparsity {sparsity:.1%} {step.images_per_second:.0f} images/s, {left:.0f} s left"
                )

        return show

    def _live(self, label: str) -> Iterator[Callable[[StepReport, float], None]]:
        with Progress(*_COLUMNS, console=self._rich, transient=True) as progress:
            task = progress.add_task(label, total=None, detail="")

            def show(step: StepReport, sparsity: float) -> None:
                detail = f"loss {step.loss:.2f} sparsity {sparsity:.0%} {step.images_per_second:.0f} images/s"
                progress.update(task, completed=step.step + 1, total=step.total_steps, detail=detail)

            yield show
