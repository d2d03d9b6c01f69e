"""How much AP a detector loses when one of its weights is pruned alone."""

from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path

from torch import nn

from sparsedet.benchmark.calibration import calibration_of
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import open_evaluation
from sparsedet.common.files import write_atomically
from sparsedet.detection.data.splits import open_splits
from sparsedet.report.plots import layer_losses, to_png
from sparsedet.sparsity import SensitivityCurves, measure_sensitivity


def measure_ap(
    path: Path,
    folder: Path,
    sparsities: Sequence[float],
    num_images: int | None,
    overrides: tuple[str, ...],
    device_name: str,
    console: Console,
) -> tuple[SensitivityCurves, tuple[Path, ...]]:
    """Measure the AP of a checkpoint with each weight pruned alone; an interrupted measurement goes on.

    Weights that the checkpoint's recipe leaves out are left out here, and its criterion says which entries of a weight
    go, with the batches that its training begins with; without a sparsity section it is magnitude.

    Args:
        path: checkpoint file.
        folder: where curves (JSON) and plot (PNG) go.
        sparsities: of each weight, in (0, 1].
        num_images: evaluate on so many images, spread evenly over the validation split; None: on all.
        overrides: ``key=value`` laid on the checkpoint's recipe.
        device_name: where to run.
        console: told about every measurement.

    Returns:
        The curves, and the files that were written.

    Raises:
        SparseDetError: see `open_evaluation` and `measure_sensitivity`.
    """
    warnings: list[str] = []
    evaluation = open_evaluation(path, overrides, device_name, num_images, warnings.append)
    recipe = evaluation.saved.recipe
    count = len(evaluation.images)
    name = folder / f"sensitivity-{count}-images"
    done = 0

    def ap(model: nn.Module) -> float:
        nonlocal done
        value = evaluation.metrics(evaluation.detect())["ap"]
        done += 1
        console.say(f"measurement {done}: AP {100 * value:.1f} on {count} images")
        return value

    model, sparsity = evaluation.saved.model, recipe.sparsity
    targets, criterion = (None, None) if sparsity is None else (sparsity.targets, sparsity.criterion)
    needs_training_data = criterion is not None and criterion.needs_calibration
    splits = open_splits(recipe.data, recipe.seed) if needs_training_data else None
    for warning in dict.fromkeys((*warnings, *(splits.warnings if splits else ()))):  # both have read the images of val
        console.warn(warning)
    calibration = calibration_of(recipe, splits, model.stride, evaluation.device)
    cache = name.with_suffix(".json")
    curves = measure_sensitivity(model, ap, targets, sparsities, cache, criterion, calibration)
    title = f"AP lost by one layer, dense {100 * curves.dense:.1f}, {count} images"
    figure = layer_losses(curves.pairs, curves.dense, title)
    write_atomically(name.with_suffix(".png"), methodcaller("write", to_png(figure)))
    return curves, (cache, name.with_suffix(".png"))
