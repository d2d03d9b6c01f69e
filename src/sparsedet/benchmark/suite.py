"""A suite: several experiments, usually around one dense start, run one after another into one folder."""

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from sparsedet.benchmark.cells import forget_error, note_error, run_cells
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.experiment import CONFIG_FILE, check_recipe, check_start, last_checkpoint, run_experiment
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.log_file import LOG_FILE
from sparsedet.benchmark.recipe import LoadedRecipe, finish_recipe
from sparsedet.benchmark.remaining import Remaining
from sparsedet.benchmark.upstream.file import read_config
from sparsedet.common.config import ConfigModel, dump, validate
from sparsedet.common.document import Document, KeyPath
from sparsedet.common.errors import ConfigError, ProcessesError, SparseDetError, did_you_mean
from sparsedet.common.files import to_json, write_json
from sparsedet.common.lock import FILES_LOCK, locked
from sparsedet.common.processes import from_first, is_first, is_lost_process, join_processes, num_processes
from sparsedet.common.runtime import choose_device, writable_folder
from sparsedet.common.stopping import StopRequests
from sparsedet.report.record import MAX_NAME_LENGTH, FolderName, Record, read_records
from sparsedet.report.run import SUITE_FILE


class SuiteEntry(ConfigModel):
    """One experiment of a suite.

    Attributes:
        name: its folder inside the run folder.
        family: heading that its row stands under in the published layout.
        label: its row, ``network (backbone, batch size, epochs)``.
        start: name of an earlier experiment whose last checkpoint it starts from.
        recipe: path of a recipe file, or the recipe itself (which may name a ``base:``); it is read apart.
    """

    name: FolderName
    family: str = ""
    label: str = ""
    start: str | None = None
    recipe: str


class SuiteConfig(ConfigModel):
    """A suite file.

    Attributes:
        title: heading of the report.
        notes: what a reader must know of the numbers, printed in the report.
        experiments: in the order in which they run.
    """

    title: str
    notes: tuple[str, ...] = ()
    experiments: tuple[SuiteEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Self:
        seen: list[str] = []
        for entry in self.experiments:
            if entry.name in seen:
                raise ValueError(f"experiments: expected different names, got '{entry.name}' twice. Rename one.")
            if entry.start is not None and entry.start not in seen:
                raise ValueError(
                    f"experiments: expected 'start' of '{entry.name}' to name an earlier experiment {seen}, "
                    f"got '{entry.start}'."
                    f"{did_you_mean(entry.start, seen)} Correct it."
                )
            seen.append(entry.name)
        return self


@dataclass(frozen=True)
class Suite:
    """A suite whose recipes are loaded and validated."""

    config: SuiteConfig
    recipes: tuple[LoadedRecipe, ...]

    def cells(self, only: str | None = None) -> dict[str, LoadedRecipe]:
        """Return the recipe of each experiment by its name; of one, if `only` names it.

        Raises:
            ConfigError: there is none of that name.
        """
        names = [entry.name for entry in self.config.experiments]
        cells = dict(zip(names, self.recipes, strict=True))
        if only is None:
            return cells
        if only not in cells:
            raise ConfigError(
                f"--only: expected an experiment of {names}, got '{only}'.{did_you_mean(only, names)} Correct it."
            )
        return {only: cells[only]}

    def entry(self, name: str) -> SuiteEntry:
        """Return what the suite says of an experiment."""
        return next(entry for entry in self.config.experiments if entry.name == name)

    def job(self, name: str, folder: Path, device: torch.device, console: Console, stop: StopRequests) -> Job:
        """Return what running an experiment into the suite's `folder` is."""
        entry = self.entry(name)
        recipe = self.cells(name)[name].recipe
        return Job(recipe, name, entry.family, entry.label or name, folder / name, device, console, stop)


def load_suite(path: Path, overrides: tuple[str, ...] = ()) -> Suite:
    """Read a suite file and all its recipes; a recipe file is a suite of one experiment with the file's name.

    Args:
        path: YAML file.
        overrides: ``key=value`` laid on every recipe, or on one with ``NAME:key=value``.

    Raises:
        ConfigError: anything in the suite or in one of its recipes is wrong.
    """
    document = read_config(path)
    if "experiments" not in document.data:
        recipe = finish_recipe(document, overrides)
        name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", path.stem).strip("-") or "recipe"
        entry = SuiteEntry(name=name[:MAX_NAME_LENGTH], recipe=path.name)
        return Suite(SuiteConfig(title=path.stem, experiments=(entry,)), (recipe,))
    documents = _take_recipes(document)
    config = validate(SuiteConfig, document)
    names = [entry.name for entry in config.experiments]
    shared, own = _split_overrides(overrides, names)
    recipes = (finish_recipe(recipe, [*shared, *own[name]]) for name, recipe in zip(names, documents, strict=True))
    return Suite(config, tuple(recipes))


def run_suite(
    suite: Suite, folder: Path, device_name: str, console: Console, only: str | None = None
) -> tuple[Record, ...]:
    """Run what of `suite` is not finished in `folder` and return all records.

    With one process, an experiment that fails in a way that can pass (`cells.CAN_PASS`) is tried again once, and the
    others are run even if it fails. Several processes end with the first failure: they are no longer in step.

    Args:
        suite: what to run.
        folder: where to.
        device_name: as `choose_device` takes it.
        console: told about the progress.
        only: name of the one experiment to run. Others may be run into the same folder at the same time.

    Raises:
        ConfigError: `only` is none of the suite.
        CheckpointError: what `only` starts from is not finished.
        StorageError: another run writes to `folder`.
        Stopped: SIGTERM or Ctrl-C asked for it.
        SuiteError: some of several experiments have failed; what is done stays, and the same call goes on from there.
        SparseDetError: likewise, of one.
    """
    cells = suite.cells(only)
    device = join_processes(choose_device(device_name))
    if not is_first():
        console = Console.silent()
    records: dict[str, tuple[Record, ...]] = {}
    names = list(suite.cells())
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests(console.say))
        from_first(lambda: open_folder(suite, folder, stack, only))
        if is_first():
            stack.enter_context(console.logging(folder / LOG_FILE))
        console.records_header()
        remaining = _remaining(cells, folder) if len(cells) > 1 else None

        def attempt(name: str) -> None:
            if len(names) > 1:
                console.say(f"{name}: experiment {names.index(name) + 1} of {len(names)}")
            console.notes(name, cells[name].notes)
            job = replace(suite.job(name, folder, device, console, stop), remaining=remaining)
            records[name] = _run_cell(job, suite.entry(name).start)

        if num_processes() == 1:
            run_cells([suite.entry(name) for name in cells], attempt, console)
        else:
            for name in cells:
                attempt(name)
    return tuple(chain.from_iterable(records.values()))


def open_folder(suite: Suite, folder: Path, stack: ExitStack, only: str | None = None) -> None:
    """Lock the folder until `stack` ends, write what will be run, and look for faults in all of it.

    With `only`, one experiment is looked at, and the folder is free for others. (That experiment's own is locked when
    it is run.)
    """
    writable_folder(folder)
    if only is None:
        stack.enter_context(locked(folder))
        _write_suite(suite, folder)
    else:
        with locked(folder, FILES_LOCK, waits=True):
            _share_suite(suite, folder)
    for name, loaded in suite.cells(only).items():  # all of them first, so that no fault waits behind hours of training
        check_recipe(loaded.recipe)
        if suite.entry(name).start is None and not (folder / name / CONFIG_FILE).exists():
            check_start(loaded.recipe)


def _remaining(cells: dict[str, LoadedRecipe], folder: Path) -> Remaining:
    recipes = {name: loaded.recipe for name, loaded in cells.items()}
    return Remaining(
        recipes, {name: sum(record.steps for record in read_records(folder / name)[0]) for name in recipes}
    )


def _share_suite(suite: Suite, folder: Path) -> None:
    """Write what will be run, unless it is there; a suite that is being run into the folder has to be this one."""
    path = folder / SUITE_FILE
    if path.exists() and path.read_text(encoding="utf-8") == to_json(_description(suite)):
        return
    with locked(folder):
        _write_suite(suite, folder)


def _write_suite(suite: Suite, folder: Path) -> None:
    write_json(folder / SUITE_FILE, _description(suite))


def _description(suite: Suite) -> dict[str, Any]:
    config = suite.config
    entries = [
        {
            "name": entry.name,
            "family": entry.family,
            "label": entry.label or entry.name,
            "start": entry.start,
            "scheduler": loaded.recipe.scheduler,
            "pattern": loaded.recipe.pattern,
            "budget": loaded.recipe.budget,
            "sparsities": list(loaded.recipe.target_sparsities),
            "published_ap": list(loaded.recipe.published_ap or ()),
        }
        for entry, loaded in zip(config.experiments, suite.recipes, strict=True)
    ]
    return {"title": config.title, "notes": list(config.notes), "experiments": entries}


def _run_cell(job: Job, start: str | None) -> tuple[Record, ...]:
    """Run one experiment, alone in its folder; why it ended is written there too."""
    try:
        with ExitStack() as stack:
            from_first(lambda: _take_folder(job.folder, stack))
            if start is not None:
                checkpoint = from_first(lambda: last_checkpoint(job.folder.parent / start))
                job = replace(job, recipe=job.recipe.model_copy(update={"initial_checkpoint": checkpoint}))
            return run_experiment(job)
    except SparseDetError as error:
        note_error(job.folder, error)
        raise
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        lost = ProcessesError(
            f"processes: expected all {num_processes()} to go on, got a broken connection ({_first_line(error)}). "
            "See what the others have said; the same command goes on from the last checkpoint."
        )
        note_error(job.folder, lost)
        raise lost from error


def _take_folder(folder: Path, stack: ExitStack) -> None:
    writable_folder(folder)
    stack.enter_context(locked(folder))
    forget_error(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def resolved(suite: Suite) -> dict[str, dict[str, Any]]:
    """Return the resolved recipe of each experiment by its name, as plain data."""
    return {
        entry.name: dump(loaded.recipe) for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True)
    }


def _split_overrides(overrides: tuple[str, ...], names: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        name, colon, _ = override.partition("=")[0].partition(":")
        if not colon:
            shared.append(override)
        elif name in own:
            own[name].append(override[len(name) + 1 :])
        else:
            raise ConfigError(
                f"--set: expected an experiment of {names} before ':', got '{name}'.{did_you_mean(name, names)} "
                "Correct it."
            )
    return shared, own


def _take_recipes(suite: Document) -> list[Document]:
    """Return the recipe of each experiment, from its file or from the suite, and leave only its place in the suite."""
    documents = []
    experiments = suite.data["experiments"]
    for index, entry in enumerate(experiments if isinstance(experiments, list) else []):
        recipe = entry.get("recipe") if isinstance(entry, dict) else None
        path: KeyPath = ("experiments", index, "recipe")
        if isinstance(recipe, str):
            documents.append(read_config(Path(os.path.realpath(suite.folders[path] / recipe))))
        elif isinstance(recipe, dict):
            documents.append(suite.part(path))
            entry["recipe"] = suite.position(path)
    return documents
