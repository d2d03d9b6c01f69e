"""What a suite would do, without doing it: steps, levels, batches, learning rates, published values, disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark.checkpoint import num_level_bytes
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.experiment import check_recipe, check_start
from sparsedet.benchmark.levels import split_levels
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.suite import Suite
from sparsedet.common.errors import ConfigError
from sparsedet.detection.trainer import Level

Row = dict[str, Any]


def plan(suite: Suite, warn: Callable[[str], None] | None = None) -> list[Row]:
    """Return one row for each level of each experiment; a dense run is one level.

    Counts come from the data or, where they are not there, from ``data.num_train_images``.

    Args:
        suite: the experiments.
        warn: is told each thing that was put right or is odd about their data; None: it goes to stderr.

    Raises:
        ConfigError: neither is there, or the levels do not fit into the steps.
        SparseDetError: the data are there, and what a run would refuse before its first step.
    """
    rows: list[Row] = []
    warnings: dict[str, None] = {}  # several experiments have the same data
    for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True):
        recipe = loaded.recipe
        training = recipe.training
        num_images, num_classes, found = _counts(recipe, entry.start)
        warnings.update(dict.fromkeys(found))
        total_steps = training.total_steps(num_images)
        steps_per_epoch = training.steps_per_epoch(num_images)
        num_bytes = _num_level_bytes(recipe, num_classes)
        measure = " of MACs" if recipe.budget == "macs" else ""
        for index, level in enumerate(split_levels(recipe.sparsity, total_steps)):
            targets = recipe.target_sparsities
            rates = _rates(recipe, level, steps_per_epoch)
            rows.append(
                {
                    "experiment": entry.name,
                    "starts from": entry.start or _start(recipe),
                    "level": f"{100 * targets[index]:.4g}%{measure} {recipe.pattern}" if targets else "dense",
                    "steps": level.num_steps,
                    "epochs": round(level.num_steps / steps_per_epoch, 2),
                    "batch": training.batch_text,
                    "first lr": rates[0] if rates else None,
                    "peak lr": max(rates, default=None),
                    "last lr": rates[-1] if rates else None,
                    "published AP": None if recipe.published_ap is None else recipe.published_ap[index],
                    "disk MiB": round(num_bytes / 2**20, 1),
                }
            )
    for warning in warnings:
        (warn or Console().warn)(warning)
    return rows


def summary(rows: list[Row], suite: Suite, folder: Path) -> list[str]:
    """Say how much disk the files of weights need, beside what is free where `folder` is or will be, and the hours.

    Args:
        rows: what `plan` returned, with or without ``hours``.
        suite: likewise.
        folder: of the run.
    """
    levels = sum(row["disk MiB"] for row in rows)
    inside = max(
        next(row["disk MiB"] for row in rows if row["experiment"] == entry.name)
        * loaded.recipe.training.checkpoints.levels_inside
        for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True)
    )
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free / 2**20
    lines = [
        f"disk: at most {levels / 1024:.2f} GiB of weights that stay, {inside / 1024:.2f} GiB of checkpoints inside "
        f"levels while an experiment runs; {free / 1024:.2f} GiB are free at {place}"
        + (": NOT ENOUGH" if free < levels + inside else "")
    ]
    if "hours" in rows[0]:
        hours = sum(row["hours"] for row in rows)
        lines.append(f"hours: {hours:.3g} in all, one experiment after another, without computing AP and its intervals")
    return lines


def _num_level_bytes(recipe: Recipe, num_classes: int) -> int:
    """Return the bytes of the files of weights that a level leaves."""
    with torch.device("meta"):
        model = recipe.detector.build(num_classes, pretrained=False)
    return num_level_bytes(model, recipe)


def _rates(recipe: Recipe, level: Level, steps_per_epoch: int) -> list[float]:
    """Return the learning rates of the steps at which a level may have its first, highest and last one, in order."""
    training = recipe.training
    counted = level.lr_steps or level.steps
    num_warmup = training.lr_schedule.num_warmup_steps(len(counted), steps_per_epoch)
    peak = counted.start + max(num_warmup - 1, 0)  # rates rise up to the last step of the warm-up, and never after it
    steps = sorted({*level.steps[:1], *(step for step in (peak, peak + 1) if step in level.steps), *level.steps[-1:]})
    return [level.lr(step, training, steps_per_epoch) for step in steps]


def _counts(recipe: Recipe, start: str | None) -> tuple[int, int, tuple[str, ...]]:
    """Return the number of training images, of classes (COCO's where there are no data), and warnings of the data.

    Where there are data, the rest of the recipe is checked as before a run that starts from the experiment `start`.
    """
    data = recipe.data
    if data.train_annotations.exists():
        splits = check_recipe(recipe)
        if start is None:
            check_start(recipe)
        return len(splits.train), len(splits.train.coco.categories), splits.warnings
    if data.num_train_images is None:
        raise ConfigError(
            f"data.root: expected the annotation file {data.train_annotations} or data.num_train_images, "
            "got neither. Give the data with --set data.root=PATH, or the number of training images."
        )
    return data.num_train_images, 80, ()


def _start(recipe: Recipe) -> str:
    if recipe.initial_checkpoint is not None:
        return recipe.initial_checkpoint.name
    weights = recipe.detector.backbone.weights
    return "scratch" if weights == "none" else weights
