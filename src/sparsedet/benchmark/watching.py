"""What is written down of a run while it goes: metrics.jsonl, and trackers where the recipe names some."""

from pathlib import Path

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.metrics_file import MetricsFile
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.trackers import Trackers
from sparsedet.common.config import dump
from sparsedet.detection.trainer import StepReport
from sparsedet.report.record import Record
from sparsedet.report.run import METRICS_FILE


class Watch:
    """Writes down steps and levels; of several processes only the first calls it.

    Args:
        recipe: what is run.
        folder: of the experiment.
        name: of the experiment.
        console: told about trackers that fail.
    """

    def __init__(self, recipe: Recipe, folder: Path, name: str, console: Console) -> None:
        self._recipe = recipe
        self._folder = folder
        self._name = name
        self._console = console
        self._file = MetricsFile(folder / METRICS_FILE, recipe.training.log_every)
        self._trackers: Trackers | None = None

    def begin(self, first_step: int, evaluates: bool = False) -> None:
        """Forget steps from `first_step` on, which come again, and start the trackers.

        With `evaluates` the evaluation before that step comes again, too.

        Raises:
            MissingExtraError: the package of a tracker is missing.
            ConfigError: a tracker does not start.
        """
        self._file.drop_from(first_step, evaluates)
        names = self._recipe.training.trackers
        if names:
            settings, warn = dump(self._recipe), self._console.warn
            self._trackers = Trackers(names, self._folder, self._name, settings, first_step, warn)

    def step(self, step: StepReport, level: int, sparsity: float | None) -> None:
        """Write down a step of a level with the sparsity of the masks, if it has a line.

        Raises:
            StorageError: the metrics cannot be written.
        """
        line = self._file.write(step, level, sparsity)
        if line is not None and self._trackers is not None:
            self._trackers.log({f"train/{key}": value for key, value in line.items() if key != "step"}, step.step)

    def evaluation(self, step: int, level: int, ap: float, sparsity: float | None) -> None:
        """Write down what an evaluation inside a level has given, after `step` with the sparsity of the masks.

        Raises:
            StorageError: the metrics cannot be written.
        """
        self._file.evaluation(step, level, ap, sparsity)
        if self._trackers is not None:
            self._trackers.log({"val/ap": ap}, step)

    def level(self, record: Record, last_step: int) -> None:
        """Write down what a level has given; its `last_step` is the step behind its last."""
        if self._trackers is not None:
            values = {f"val/{key}": value for key, value in record.metrics.items()}
            values |= {"val/measured_sparsity": record.measured_sparsity, "val/macs_kept": record.macs_kept}
            self._trackers.log(values, max(last_step - 1, 0))

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint of a later step gets there."""
        self._file.sync()

    def end(self) -> None:
        """End the trackers."""
        if self._trackers is not None:
            self._trackers.finish()
