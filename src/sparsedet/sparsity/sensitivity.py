"""How much a metric suffers when one weight of a model is pruned alone, measured."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsedet.common.config import dump
from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.common.files import write_json
from sparsedet.sparsity.allocation.selection import max_zeros, not_finite
from sparsedet.sparsity.allocation.sensitivity import Point, SensitivityCurves
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.criteria import Criterion, Magnitude
from sparsedet.sparsity.masks import Mask
from sparsedet.sparsity.patterns import Unstructured
from sparsedet.sparsity.targets import Targets
from sparsedet.sparsity.weights import Weight, find_weights

DEFAULT_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


def measure_sensitivity(
    model: nn.Module,
    metric: Callable[[nn.Module], float],
    targets: Targets | None = None,
    sparsities: Sequence[float] = DEFAULT_SPARSITIES,
    cache: str | Path | None = None,
    criterion: Criterion | None = None,
    calibration: Calibration | None = None,
) -> SensitivityCurves:
    """Measure `metric` with each chosen weight pruned alone to each of `sparsities`.

    The masks are those of `Sparsifier`: exactly ``round(sparsity * n)`` zeros, at most 99 %; the sparsity that is
    recorded is counted in the weight. After every measurement the weight is what it was, bit for bit.

    Args:
        model: any module.
        metric: returns a number for the model, the larger the better (AP, accuracy, minus a loss), the same if
            called again; puts the model in eval mode itself.
        targets: which weights; default all.
        sparsities: of each curve, in (0, 1].
        cache: JSON file that every measurement is written to and that is read first, so that an interrupted or
            extended run measures only what is missing. It must be of the same weights and criterion; that metric
            and calibration data are the same cannot be checked.
        criterion: which entries of a weight go first; default magnitude. `obc` is refused.
        calibration: data, if the criterion looks at some.

    Returns:
        All measurements of the file, also of sparsities that are not asked for any more.

    Raises:
        CheckpointError: the cache is of other weights or of another criterion.
        ConfigError: a sparsity is out of range, the metric is no finite number, or the cache is no such file.
        SparseDetError: a weight is NaN or infinite.
        TargetMatchError: see `Targets.select`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        >>> inputs = torch.randn(32, 4)
        >>> outputs = model(inputs).detach()
        >>> curves = measure_sensitivity(model, lambda model: -nn.functional.mse_loss(model(inputs), outputs).item())
        >>> config = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Sensitivity(curves=curves))
        >>> Sparsifier(model, config).prune_(0)
    """
    if not sparsities or not all(0 < sparsity <= 1 for sparsity in sparsities):
        raise ConfigError(f"sparsities: expected numbers in (0, 1], got {list(sparsities)}. Correct them.")
    cache = None if cache is None else Path(cache)
    criterion = criterion or Magnitude()
    weights = find_weights(model)
    rows = (targets or Targets()).select(weights, Unstructured())
    chosen = [weight for weight, row in zip(weights, rows, strict=True) if row.chosen]
    criterion.check(chosen, calibration)
    if criterion.updates_weights:
        raise ConfigError(
            f"criterion: expected one that leaves the other weights as they are, got '{criterion.type}'. "
            "Use 'magnitude'."
        )
    for weight in chosen:
        if not weight.tensor.isfinite().all():
            raise not_finite(weight.name)
    statistics = {} if calibration is None else criterion.statistics(model, chosen, calibration)
    fingerprint = _fingerprint(chosen, criterion)
    found = SensitivityCurves.load(cache) if cache is not None and cache.exists() else None
    if found is not None and found.fingerprint != fingerprint:
        raise CheckpointError(
            f"{cache}: expected measurements of these weights, got those of other weights or of another criterion. "
            "Delete the file, or name another one."
        )
    dense = _value(metric, model, "the model as it is") if found is None else found.dense
    curves = {weight.name: list(found.curves.get(weight.name, ())) if found else [] for weight in chosen}
    left_out = {row.name: row.reason for row in rows if not row.chosen}
    result = SensitivityCurves(fingerprint=fingerprint, dense=dense, curves=curves, left_out=left_out)
    for weight in chosen:
        for sparsity in sparsities:
            if all(point.target_sparsity != sparsity for point in result.curves[weight.name]):
                scores = criterion.scores(weight.tensor, weight.name, statistics.get(weight.name)).cpu().contiguous()
                result.curves[weight.name].append(_measure(model, weight, sparsity, metric, scores))
                if cache is not None:
                    write_json(cache, dump(result))
    return result


def _measure(
    model: nn.Module, weight: Weight, sparsity: float, metric: Callable[[nn.Module], float], scores: Tensor
) -> Point:
    tensor = weight.tensor.detach()
    before = tensor.clone()
    num_zeros = min(round(sparsity * tensor.numel()), max_zeros(tensor.numel()))
    try:
        Mask.of(Unstructured().mask(scores, num_zeros)).apply_(tensor)
        measured = 1 - int(tensor.count_nonzero()) / tensor.numel()
        value = _value(metric, model, f"'{weight.name}' pruned to {sparsity:g}")
    finally:
        tensor.copy_(before)
    return Point(target_sparsity=sparsity, measured_sparsity=measured, value=value)


def _value(metric: Callable[[nn.Module], float], model: nn.Module, what: str) -> float:
    found = metric(model)
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"metric: expected a finite number, got {found} for {what}. Return a number for every model.")
    return value


def _fingerprint(weights: Sequence[Weight], criterion: Criterion) -> str:
    """Return a hash that changes with any bit of the weights, their names, or the criterion."""
    digest = hashlib.sha256(json.dumps(dump(criterion), sort_keys=True).encode())
    for weight in weights:
        values = weight.tensor.detach().cpu().contiguous()
        digest.update(f"{weight.name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
