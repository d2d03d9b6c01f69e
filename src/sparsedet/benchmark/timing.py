"""How long a suite would take: a few training steps and evaluated images of each kind of experiment, timed.

Nothing is written.
"""

import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from sparsedet.benchmark.analysis import example_inputs
from sparsedet.benchmark.calibration import calibration_of
from sparsedet.benchmark.plan import Row
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.sparsity_callback import SparsityCallback
from sparsedet.benchmark.suite import Suite
from sparsedet.common.config import dump
from sparsedet.common.files import hash_json
from sparsedet.common.processes import join_processes, num_processes, rank
from sparsedet.common.runtime import choose_device, start
from sparsedet.detection.data.loader import val_loader
from sparsedet.detection.data.splits import Splits, open_splits
from sparsedet.detection.inference import detect
from sparsedet.detection.trainer import Level, Trainer
from sparsedet.sparsity import Sparsifier

NUM_UNCOUNTED = 3
NUM_STEPS = 10
NUM_BATCHES = 3
SAME_SPEED = ("initial_checkpoint", "published_ap", "assumed", "seed", "expected_steps", "write_analysis")


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
        step_seconds: mean of `NUM_STEPS` training steps after `NUM_UNCOUNTED`, loading included.
        evaluation_seconds: of the detections on all validation images, from those of `NUM_BATCHES` batches after one;
            without computing metrics from them.
    """

    step_seconds: float
    evaluation_seconds: float


def add_hours(rows: list[Row], suite: Suite, device_name: str) -> None:
    """Add to each row of a plan the ``step s`` and ``hours`` of its level, with as many processes as there are now.

    Detectors have random weights: trained ones find more or fewer boxes, which changes the time of an evaluation.

    Raises:
        DatasetError: the data are not there, or wrong.
    """
    device = join_processes(choose_device(device_name))
    known: dict[str, Timing] = {}
    for name, loaded in suite.cells().items():
        recipe = loaded.recipe
        kind = _kind(recipe)
        if kind not in known:
            known[kind] = measure(recipe, device)
        timing = known[kind]
        for row in (row for row in rows if row["experiment"] == name):
            evaluations = _num_evaluations(recipe, row["steps"])
            row["step s"] = round(timing.step_seconds, 4)
            row["hours"] = (row["steps"] * timing.step_seconds + evaluations * timing.evaluation_seconds) / 3600


def measure(recipe: Recipe, device: torch.device) -> Timing:
    """Time training steps and evaluated images of an experiment; all of several processes have to call it."""
    start(recipe.seed, device)
    splits = open_splits(recipe.data, recipe.seed)
    model = recipe.detector.build(len(splits.train.coco.categories), pretrained=False).to(device)
    callback = None
    if recipe.sparsity is not None and not recipe.dense_control:
        inputs = example_inputs(recipe, splits, model.stride, device)
        calibration = calibration_of(recipe, splits, model.stride, device)
        sparsifier = Sparsifier(model, recipe.sparsity, inputs, model.run_all, calibration)
        callback = SparsityCallback(sparsifier, lambda: None)
    training = recipe.training
    if training.total_steps(len(splits.train)) < NUM_UNCOUNTED + NUM_STEPS:
        training = training.model_copy(update={"steps": NUM_UNCOUNTED + NUM_STEPS, "epochs": None})
    trainer = Trainer(model, training, len(splits.train), device, recipe.seed, callback)
    if callback is not None:
        callback.sparsifier.attach(trainer.optimizer)
    return Timing(_step_seconds(trainer, splits), _evaluation_seconds(trainer, recipe, splits))


def _step_seconds(trainer: Trainer, splits: Splits) -> float:
    level = Level(0, NUM_UNCOUNTED + NUM_STEPS)
    ends: list[float] = []
    trainer.report = lambda _: ends.append(time.perf_counter())  # the report's loss has waited for the device
    trainer.train(level, trainer.batches(splits.train, level.steps))
    return (ends[-1] - ends[-1 - NUM_STEPS]) / NUM_STEPS


def _evaluation_seconds(trainer: Trainer, recipe: Recipe, splits: Splits) -> float:
    """Return the time of all images; of several processes, of the share that this one has."""
    val, size = splits.val, recipe.evaluation.batch_size
    batches = val_loader(val, size, trainer.model.stride, recipe.training.num_workers, num_processes(), rank())
    num_images = 0
    began = time.perf_counter()
    for number, batch in enumerate(islice(batches, NUM_BATCHES + 1)):
        if number == 1:  # the first one warms up, unless it is the only one
            began, num_images = time.perf_counter(), 0
        detect(trainer.evaluated_model, [batch], val.coco.category_ids, trainer.device, recipe.training.precision)
        num_images += len(batch.image_ids)
    return (time.perf_counter() - began) / max(num_images, 1) * len(val.images) / num_processes()


def _num_evaluations(recipe: Recipe, num_steps: int) -> int:
    """Return how often a level of so many steps is evaluated."""
    every = recipe.evaluation.every_steps
    inside = 0 if every is None else max(num_steps - 1, 0) // every  # its end is evaluated in any case
    if recipe.scheduler == "dense" or not recipe.evaluation.after_pruning:
        return 1 + inside
    return (2 if recipe.reestimate_batch_norm is None else 3) + inside


def _kind(recipe: Recipe) -> str:
    """Return what experiments of one speed have in common."""
    data: dict[str, Any] = dump(recipe)
    for key in SAME_SPEED:
        del data[key]
    training = {**data["training"]}
    for key in ("steps", "epochs", "checkpoints"):
        training.pop(key, None)
    return hash_json({**data, "training": training})
