"""Evaluating a checkpoint, or the detections that were saved from one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark.checkpoint import SavedDetector, open_checkpoint
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.samples import spread
from sparsedet.common.errors import CheckpointError
from sparsedet.common.runtime import choose_device, start
from sparsedet.detection.bootstrap import Interval, bootstrap
from sparsedet.detection.data.check import load_val, name_differences
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.loader import val_loader
from sparsedet.detection.evaluation import DetailedMetrics, evaluate, evaluate_in_detail, read_results, write_results
from sparsedet.detection.inference import detect


def evaluate_checkpoint(
    path: Path,
    overrides: tuple[str, ...] = (),
    device_name: str = "auto",
    detections: Path | None = None,
    save_detections: Path | None = None,
) -> dict[str, float]:
    """Return the 12 COCO metrics of a checkpoint on the validation split of its recipe; the other is not read.

    What is put right or odd about the data is said on stderr.

    Args:
        path: checkpoint file.
        overrides: ``key=value`` laid on its recipe, such as another ``data.root``.
        device_name: where to run.
        detections: COCO results file that is evaluated instead of running the detector.
        save_detections: file to which the detections are written as COCO results.

    Raises:
        CheckpointError: the checkpoint is damaged, or knows other classes than the data.
        DatasetError: annotations, images or the results file are wrong.
    """
    evaluation = open_evaluation(path, overrides, device_name)
    return evaluation.metrics(_results(evaluation, detections, save_detections))


def evaluate_checkpoint_in_detail(
    path: Path,
    overrides: tuple[str, ...] = (),
    device_name: str = "auto",
    detections: Path | None = None,
    save_detections: Path | None = None,
    max_detections: tuple[int, ...] = (),
) -> tuple[DetailedMetrics, Interval | None]:
    """Return what `evaluate_checkpoint` does in detail, and the 95 % confidence interval of AP.

    Args:
        path: likewise.
        overrides: likewise.
        device_name: likewise.
        detections: likewise.
        save_detections: likewise.
        max_detections: limits beside COCO's 100 detections per image and category.

    Raises:
        ConfigError: a limit is below 1.
        CheckpointError, DatasetError: as `evaluate_checkpoint` does.
    """
    evaluation = open_evaluation(path, overrides, device_name)
    results = _results(evaluation, detections, save_detections)
    truth = evaluation.images.coco.ground_truth()
    evaluator = evaluation.saved.recipe.evaluation.evaluator
    detail = evaluate_in_detail(truth, results, evaluator, max_detections)
    return detail, bootstrap(truth, results).interval()


def _results(evaluation: "Evaluation", detections: Path | None, save_detections: Path | None) -> list[dict[str, Any]]:
    results = evaluation.detect() if detections is None else read_results(detections)
    if save_detections is not None:
        write_results(save_detections, results)
    return results


@dataclass(frozen=True)
class Evaluation:
    """A detector and the images it is evaluated on.

    Attributes:
        saved: the detector, on `device`.
        images: what it is evaluated on.
        device: where it runs.
    """

    saved: SavedDetector
    images: DetectionDataset
    device: torch.device

    def detect(self) -> list[dict[str, Any]]:
        """Return the detections in all images as COCO results."""
        recipe, model = self.saved.recipe, self.saved.model
        batches = val_loader(self.images, recipe.evaluation.batch_size, model.stride, recipe.training.num_workers)
        return detect(model, batches, self.images.coco.category_ids, self.device, recipe.training.precision)

    def metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return the 12 COCO metrics of `results`."""
        return evaluate(self.images.coco.ground_truth(), results, self.saved.recipe.evaluation.evaluator)


def open_evaluation(
    path: Path,
    overrides: tuple[str, ...] = (),
    device_name: str = "auto",
    num_images: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> Evaluation:
    """Open a checkpoint and the validation split of its recipe, or `num_images` images spread evenly over it.

    Args:
        path: checkpoint file.
        overrides: ``key=value`` laid on its recipe.
        device_name: where to run.
        num_images: None for all.
        warn: is told each thing that was put right or is odd about the data; None: it goes to stderr.

    Raises:
        CheckpointError: the checkpoint is damaged, or knows other classes than the data.
        DatasetError: annotations or images are wrong.
    """
    saved = open_checkpoint(path, overrides)
    recipe = saved.recipe
    device = choose_device(device_name)
    start(recipe.seed, device)
    coco, warnings = load_val(recipe.data)
    for warning in warnings:
        (warn or Console().warn)(warning)
    if coco.categories != saved.categories:
        expected, got = name_differences(saved.categories, coco.categories)
        raise CheckpointError(
            f"{path}: expected data with its categories, {expected}, got {got} in {coco.path}. "
            "Evaluate on data with the categories it was trained for."
        )
    if num_images is not None:
        images = tuple(spread(coco.images, num_images))
        ids = {image.id for image in images}
        annotations = tuple(annotation for annotation in coco.annotations if annotation.image_id in ids)
        coco = replace(coco, images=images, annotations=annotations)
    saved.model.to(device)
    return Evaluation(saved, DetectionDataset(coco, recipe.data, is_train=False), device)
