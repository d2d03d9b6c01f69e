"""Evaluating a checkpoint, or the detections that were saved from one."""

from pathlib import Path

from sparsedet.benchmark.checkpoint import open_checkpoint
from sparsedet.common.errors import CheckpointError
from sparsedet.common.runtime import choose_device, start
from sparsedet.detection.data.loader import val_loader
from sparsedet.detection.data.splits import open_splits
from sparsedet.detection.evaluation import evaluate, read_results, write_results
from sparsedet.detection.inference import detect


def evaluate_checkpoint(
    path: Path,
    overrides: tuple[str, ...] = (),
    device_name: str = "auto",
    detections: Path | None = None,
    save_detections: Path | None = None,
) -> dict[str, float]:
    """Return the 12 COCO metrics of a checkpoint on the validation split of its recipe.

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
    saved = open_checkpoint(path, overrides)
    recipe = saved.recipe
    device = choose_device(device_name)
    start(recipe.seed, device)
    splits = open_splits(recipe.data, recipe.seed)
    coco = splits.val.coco
    if coco.categories != saved.categories:
        raise CheckpointError(
            f"{path}: expected data with the categories {[c.name for c in saved.categories]}, got "
            f"{[c.name for c in coco.categories]}. Evaluate on the data it was trained for."
        )
    if detections is not None:
        results = read_results(detections)
    else:
        model = saved.model.to(device)
        batches = val_loader(splits.val, recipe.evaluation.batch_size, saved.model.stride, recipe.training.num_workers)
        results = detect(model, batches, coco.category_ids, device, recipe.training.precision)
    if save_detections is not None:
        write_results(save_detections, results)
    return evaluate(coco.ground_truth(), results, recipe.evaluation.evaluator)
