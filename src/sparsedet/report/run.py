"""A run folder as the report sees it: the suite's experiments in order, each with its records so far."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import field_validator

from sparsedet.common.config import ConfigModel, validate
from sparsedet.common.document import parse_json
from sparsedet.common.errors import ConfigError
from sparsedet.report.record import FolderName, Record, Share, read_records

SUITE_FILE = "suite.json"
METRICS_FILE = "metrics.jsonl"
LAYERS_FILE = "layers.json"
DETECTIONS_FILE = "detections.json"
SAMPLES_FILE = "samples.json"

Value = TypeVar("Value")


class Entry(ConfigModel):
    """What `suite.json` says of one experiment before it has run.

    Attributes:
        name: folder of the experiment inside the run folder: letters, digits, ``._-``, a letter or digit first.
        family: heading of its result table.
        label: row of that table.
        start: name of the dense experiment whose weights it starts from.
        scheduler: as in `Record`; with `pattern` and `sparsities` it lets a table show what is still to come.
        pattern: as in `Record`.
        budget: as in `Record`.
        sparsities: the sparsity asked for at each level.
        published_ap: AP in [0, 1] published elsewhere for each level (one value for a dense run), null where none was.
    """

    name: FolderName
    family: str
    label: str
    start: str | None = None
    scheduler: str | None = None
    pattern: str | None = None
    budget: Literal["weights", "macs"] = "weights"
    sparsities: tuple[Share, ...] = ()
    published_ap: tuple[Share | None, ...] = ()


class Suite(ConfigModel):
    """The content of `suite.json`, written when a suite (or a single training run) starts.

    Attributes:
        title: heading of the report.
        notes: what a reader must know of the numbers.
        experiments: in the order in which they run.
    """

    title: str
    notes: tuple[str, ...] = ()
    experiments: tuple[Entry, ...]

    @field_validator("experiments")
    @classmethod
    def _names_differ(cls, experiments: tuple[Entry, ...]) -> tuple[Entry, ...]:
        names = [entry.name for entry in experiments]
        if len(set(names)) < len(names):
            raise ValueError(f"expected different names, got {names}. Rename one experiment.")
        return experiments


@dataclass(frozen=True)
class Experiment:
    """One experiment of a run: its entry in the suite, its folder, and the records it has so far."""

    entry: Entry
    folder: Path
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Name of the experiment and of its folder."""
        return self.entry.name

    @property
    def scheduler(self) -> str | None:
        """Scheduler of the records or, before there is one, of the suite; None when neither says it."""
        return self.records[0].scheduler if self.records else self.entry.scheduler

    @property
    def is_dense(self) -> bool:
        """Whether the experiment is known to prune nothing."""
        return self.scheduler == "dense"

    @property
    def is_finished(self) -> bool:
        """Whether every level has its record."""
        return bool(self.records) and len(self.records) >= self.records[0].num_levels

    @property
    def scheme(self) -> str | None:
        """Heading of its tables: "Dense", "2:4", "Level-wise pruning" …; None as long as nobody says it."""
        pattern = self.records[0].pattern if self.records else self.entry.pattern
        if self.scheduler is None or self.is_dense:
            return self.scheduler and "Dense"
        if pattern and ":" in pattern:
            return pattern
        budget = self.records[0].budget if self.records else self.entry.budget
        words = " pruning" if budget == "weights" else " pruning, share of MACs removed"
        return self.scheduler.replace("_", "-").capitalize() + words


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: the run folder.
        title: title of the suite.
        experiments: all experiments of the suite in its order, also those that have not started.
        notices: the suite's notes, then what the reader should know about the files themselves.
    """

    folder: Path
    title: str
    experiments: tuple[Experiment, ...]
    notices: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, in the order of the suite."""
        return tuple(record for experiment in self.experiments for record in experiment.records)

    def dense_for(self, experiment: Experiment) -> Experiment | None:
        """Return the dense experiment that `experiment` is compared with.

        That is the one it says it starts from, directly or through others. Where it says nothing, it is the
        first dense one of the same family and label, else the only dense one of the suite; dense experiments
        that start from another one (controls that train on) do not count for these two.
        """
        if experiment.entry.start is not None:
            earlier = self.experiments[: self.experiments.index(experiment)]
            origin = next((other for other in earlier if other.name == experiment.entry.start), None)
            return origin if origin is None or origin.is_dense else self.dense_for(origin)
        first = [other for other in self.experiments if other.is_dense and other.entry.start is None]
        row = (experiment.entry.family, experiment.entry.label)
        same = [other for other in first if (other.entry.family, other.entry.label) == row]
        candidates = same or (first if len(first) == 1 else [])
        return candidates[0] if candidates else None


def load_run(run_dir: Path) -> Run:
    """Read a run folder; a suite that is still running is welcome.

    Raises:
        ConfigError: it is not a run folder, or a file in it is damaged.
    """
    path = run_dir / SUITE_FILE
    if not path.is_file():
        raise ConfigError(
            f"{run_dir}: expected a run folder with {SUITE_FILE}, got {_describe(run_dir)}. "
            "Give the folder that 'sparsedet train', 'bench' or 'demo' wrote."
        )
    suite = validate(Suite, parse_json(_read_text(path), str(path)))
    experiments: list[Experiment] = []
    notices: list[str] = list(suite.notes)
    for entry in suite.experiments:
        _check_inside(run_dir, run_dir / entry.name)
        records, found = read_records(run_dir / entry.name)
        experiments.append(Experiment(entry, run_dir / entry.name, records))
        notices += found
    return Run(run_dir, suite.title, tuple(experiments), tuple(notices))


def read_saved(path: Path, take: Callable[[Any], Value]) -> Value:
    """Read a JSON file that a run wrote and take out of it what is needed.

    Raises:
        ConfigError: the file cannot be read, or `take` does not find what it looks for.
    """
    text = _read_text(path)
    try:
        return take(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{path}: expected JSON as a run writes it, got {type(error).__name__} ({error}). "
            "Delete the folder of that experiment and run it again."
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, got '{error.strerror}'. Check the path.") from error


def _check_inside(run_dir: Path, folder: Path) -> None:
    """Refuse a link out of the run folder: the report would be written to where it leads."""
    target = Path(os.path.realpath(folder))
    if not target.is_relative_to(os.path.realpath(run_dir)):
        raise ConfigError(
            f"{folder}: expected a folder inside the run folder, got a link to {target}. Put the folder itself there."
        )


def _describe(path: Path) -> str:
    if not path.exists():
        return "nothing"
    return "a folder without it" if path.is_dir() else "a file"
