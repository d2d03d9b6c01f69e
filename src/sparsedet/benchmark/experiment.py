"""One experiment: its levels are run one after another, and none that is finished is run again."""

import os
import platform
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark import samples
from sparsedet.benchmark.analysis import example_inputs
from sparsedet.benchmark.calibration import calibration_of
from sparsedet.benchmark.checkpoint import CHECKPOINT_FILE
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.level_runner import LevelRunner
from sparsedet.benchmark.parameters import choose_parameters_
from sparsedet.benchmark.progress import ProgressFiles
from sparsedet.benchmark.recipe import PLACE_KEYS, Recipe
from sparsedet.benchmark.trackers import check_trackers
from sparsedet.common.config import dump, to_yaml, validate
from sparsedet.common.document import read_yaml
from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.common.files import write_json, write_text
from sparsedet.common.processes import from_first
from sparsedet.common.runtime import environment, start, writable_folder
from sparsedet.detection.data.splits import Splits, open_splits
from sparsedet.detection.models.backbones.weights import FILE_SUFFIXES
from sparsedet.report.record import Record, read_records
from sparsedet.sparsity import Sparsifier

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"


def run_experiment(job: Job) -> tuple[Record, ...]:
    """Run the levels of `job` that are not finished yet and return the records of all.

    Raises:
        ConfigError: the folder holds another recipe's run.
        DatasetError: annotations or images are wrong.
        UnreachableTargetError, TargetMatchError, UnsupportedShapeError: the sparsity asked for cannot be had.
    """
    start(job.recipe.seed, job.device)
    splits = open_splits(job.recipe.data, job.recipe.seed)
    for warning in splits.warnings:
        job.console.warn(warning)
    from_first(lambda: _claim_folder(job, splits))
    finished = from_first(lambda: _finished_levels(job))
    if len(finished) == len(job.level_names):
        job.console.say(f"{job.name}: finished before, nothing to do")
    else:
        from_first(lambda: _write_environment(job, splits))
        LevelRunner(job, splits).run(finished)
    return from_first(lambda: read_records(job.folder)[0])


def check_recipe(recipe: Recipe) -> Splits:
    """Find out what would stop a run later: faults of the data, selectors, a sparsity that cannot be had, trackers.

    Returns:
        Its data.

    Raises:
        DatasetError: annotations are wrong or image files are missing.
        UnreachableTargetError, TargetMatchError, UnsupportedShapeError: the sparsity asked for cannot be had, or a
            selector of parameters matches none.
        MissingExtraError: a tracker is not installed.
    """
    splits = open_splits(recipe.data, recipe.seed)
    check_trackers(recipe.training.trackers)
    model = recipe.detector.build(len(splits.train.coco.categories), pretrained=False)
    device = torch.device("cpu")
    choose_parameters_(recipe, model, lambda: example_inputs(recipe, splits, model.stride, device))
    if recipe.sparsity is not None:
        inputs = example_inputs(recipe, splits, model.stride, device)
        calibration = calibration_of(recipe, splits, model.stride, device)
        Sparsifier(model, recipe.sparsity, inputs, model.run_all, calibration)
    return splits


def check_start(recipe: Recipe) -> None:
    """Raise CheckpointError where the file whose weights a run starts from is not there."""
    weights = recipe.detector.backbone.weights
    if recipe.initial_checkpoint is not None:
        key, path = "initial_checkpoint", recipe.initial_checkpoint
    elif weights.endswith(FILE_SUFFIXES):
        key, path = "detector.backbone.weights", Path(weights)
    else:
        return
    if not path.is_file():
        raise CheckpointError(f"{key}: expected a file, got {path}, which is none. Check the path.")


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the last level in the folder of a finished experiment.

    Raises:
        CheckpointError: the experiment is not finished.
    """
    records, _ = read_records(folder)
    paths = [folder / record.folder / CHECKPOINT_FILE for record in records]
    if not paths or len(paths) < records[-1].num_levels or not paths[-1].exists():
        got = f"{len(paths)} of {records[-1].num_levels} levels" if paths else "none"
        raise CheckpointError(
            f"{folder}: expected a finished experiment to start from, got {got}. Run '{folder.name}' first."
        )
    return paths[-1]


def is_finished(job: Job) -> bool:
    """Tell whether every level of `job` was run with this recipe; nothing is written, no data are read."""
    finished, own = _finished_levels(job), job.recipe.hash()
    return len(finished) == len(job.level_names) and all(record.config_hash == own for record in finished)


def _claim_folder(job: Job, splits: Splits) -> None:
    """Write the resolved recipe and the sample images into the folder, or check that its run is of the same recipe."""
    writable_folder(job.folder)
    path = job.folder / CONFIG_FILE
    records, notices = read_records(job.folder)
    for notice in notices:
        job.console.warn(notice)
    has_begun = records or ProgressFiles(job.folder, job.recipe.training.checkpoints).newest_first()
    if not (has_begun and path.exists()):
        samples.save(job.folder, splits.val, job.recipe.evaluation.num_samples)
        write_text(path, to_yaml(dump(job.recipe)))
        return
    remedy = "Choose another folder with --output, or restore it."
    there = validate(Recipe, read_yaml(path))
    if there.hash() != job.recipe.hash():
        differences = ", ".join(_differences(dump(there), dump(job.recipe))[:3])
        raise ConfigError(
            f"{job.folder}: expected a run of this recipe, got one that differs in {differences}. {remedy}"
        )
    if records and records[-1].data_hash != splits.hash:
        raise ConfigError(
            f"{job.folder}: expected the data this run began with (hash {records[-1].data_hash}), "
            f"got other data (hash {splits.hash}). {remedy}"
        )


def _write_environment(job: Job, splits: Splits) -> None:
    """Write what the run goes on with now; records say what each level was run with."""
    here = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "config_hash": job.recipe.hash(),
        "data_hash": splits.hash,
        **environment(job.device),
        "accelerate": metadata.version("accelerate"),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
    }
    write_json(job.folder / ENVIRONMENT_FILE, here)


def _finished_levels(job: Job) -> tuple[Record, ...]:
    """Return the records of the leading levels whose checkpoint is there too."""
    records: list[Record] = []
    for record, name in zip(read_records(job.folder)[0], job.level_names, strict=False):
        if record.folder != name or not (job.folder / name / CHECKPOINT_FILE).exists():
            break
        records.append(record)
    return tuple(records)


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the keys in which two resolved recipes differ, with both values; where the data are does not count."""
    found: list[str] = []
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if old == new or f"{prefix}{key}" in PLACE_KEYS:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key} ({old!r} there, {new!r} here)")
    return found
