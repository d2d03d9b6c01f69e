"""What a suite would do, without doing it: steps, levels, batches, learning rates, published values."""

from typing import Any

from sparsedet.benchmark.levels import split_levels
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.suite import Suite
from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.splits import open_splits
from sparsedet.detection.trainer import Level

Row = dict[str, Any]


def plan(suite: Suite) -> list[Row]:
    """Return one row for each level of each experiment; a dense run is one level.

    Counts come from the data or, where they are not there, from ``data.num_train_images``.

    Raises:
        ConfigError: neither is there, or the levels do not fit into the steps.
        DatasetError: the data are there, and wrong.
    """
    rows: list[Row] = []
    for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True):
        recipe = loaded.recipe
        training = recipe.training
        num_images = _num_train_images(recipe)
        total_steps = training.total_steps(num_images)
        steps_per_epoch = training.steps_per_epoch(num_images)
        for index, level in enumerate(split_levels(recipe.sparsity, total_steps)):
            targets = recipe.target_sparsities
            rates = _rates(recipe, level, steps_per_epoch)
            rows.append(
                {
                    "experiment": entry.name,
                    "starts from": entry.start or _start(recipe),
                    "level": f"{targets[index]:.0%}{' of MACs' if recipe.budget == 'macs' else ''} {recipe.pattern}"
                    if targets
                    else "dense",
                    "steps": level.num_steps,
                    "epochs": round(level.num_steps / steps_per_epoch, 2),
                    "batch": training.batch_text,
                    "first lr": rates[0] if rates else None,
                    "peak lr": max(rates, default=None),
                    "last lr": rates[-1] if rates else None,
                    "published AP": None if recipe.published_ap is None else recipe.published_ap[index],
                }
            )
    return rows


def _rates(recipe: Recipe, level: Level, steps_per_epoch: int) -> list[float]:
    """Return the learning rates of the steps at which a level may have its first, highest and last one, in order."""
    training = recipe.training
    counted = level.lr_steps or level.steps
    num_warmup = training.lr_schedule.num_warmup_steps(len(counted), steps_per_epoch)
    peak = counted.start + max(num_warmup - 1, 0)  # rates rise up to the last step of the warm-up, and never after it
    steps = sorted({*level.steps[:1], *(step for step in (peak, peak + 1) if step in level.steps), *level.steps[-1:]})
    return [level.lr(step, training, steps_per_epoch) for step in steps]


def _num_train_images(recipe: Recipe) -> int:
    data = recipe.data
    if data.train_annotations.exists():
        return len(open_splits(data, recipe.seed).train)
    if data.num_train_images is None:
        raise ConfigError(
            f"data.root: expected the annotation file {data.train_annotations} or data.num_train_images, "
            "got neither. Give the data with --set data.root=PATH, or the number of training images."
        )
    return data.num_train_images


def _start(recipe: Recipe) -> str:
    if recipe.initial_checkpoint is not None:
        return recipe.initial_checkpoint.name
    weights = recipe.detector.backbone.weights
    return "scratch" if weights == "none" else weights
