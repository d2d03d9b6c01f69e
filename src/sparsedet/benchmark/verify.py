"""Whether a checkpoint holds the zeros it claims: counted in its weights, held against its masks and its pattern."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.benchmark.checkpoint import SavedDetector, open_checkpoint
from sparsedet.sparsity import Measurement, check_n_m, measure


@dataclass(frozen=True)
class Verification:
    """What was counted.

    Attributes:
        checkpoint: the file.
        sparsity: zeros over all conv/linear weights.
        sparsity_chosen: zeros over the pruned ones, None for a dense detector.
        target_sparsity: what was asked for, None for a dense detector.
        layers: one row for each conv/linear weight.
        faults: what is not as the checkpoint says; empty when all holds.
    """

    checkpoint: str
    sparsity: float
    sparsity_chosen: float | None
    target_sparsity: float | None
    layers: list[dict[str, Any]]
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that say the result."""
        asked = "dense" if self.target_sparsity is None else f"asked {self.target_sparsity:.2%}"
        chosen = "" if self.sparsity_chosen is None else f", {self.sparsity_chosen:.4%} over the pruned ones"
        counted = f"{asked}; zeros counted: {self.sparsity:.4%} over all conv/linear weights{chosen}"
        verdict = tuple(f"fault: {fault}" for fault in self.faults) or (
            "verified: the weights are what the checkpoint says",
        )
        return counted, *verdict


def verify_checkpoint(path: Path) -> Verification:
    """Count the zeros of a checkpoint and hold them against its masks, its target and its pattern.

    Raises:
        CheckpointError: the file cannot be read.
    """
    saved = open_checkpoint(path)
    sparsity = saved.recipe.sparsity
    measurement = measure(saved.model, chosen=saved.masks)
    parameters: dict[str, Tensor] = dict(saved.model.named_parameters())
    faults = [fault for name, mask in saved.masks.items() if (fault := _mask_fault(name, parameters[name], mask))]
    target = None
    if saved.masks and sparsity is not None:
        target = saved.recipe.target_sparsities[saved.level]
        if sparsity.pattern.type in ("n_m", "n_m_2d"):
            faults += _pattern_faults(saved, parameters)
        elif sparsity.pattern.type == "unstructured" and sparsity.budget == "weights" and sparsity.compensate:
            faults += _count_faults(saved, measurement, target)
    layers = [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "num_weights": layer.numel,
            "num_zeros": layer.num_zeros,
            "sparsity": layer.sparsity,
        }
        for layer in measurement.layers
    ]
    return Verification(
        str(path),
        measurement.measured_sparsity,
        measurement.measured_sparsity_chosen if saved.masks else None,
        target,
        layers,
        tuple(faults),
    )


def _mask_fault(name: str, weight: Tensor, mask: Tensor) -> str | None:
    pruned = weight.detach()[~mask]
    wrong = int(((pruned != 0) | torch.signbit(pruned)).sum())
    return f"{name}: expected +0.0 at {pruned.numel()} pruned places, got another value at {wrong}" if wrong else None


def _count_faults(saved: SavedDetector, measurement: Measurement, target: float) -> list[str]:
    assert saved.recipe.sparsity is not None
    layers = [
        layer for layer in measurement.layers if saved.recipe.sparsity.scope == "all" or layer.name in saved.masks
    ]
    expected = round(target * sum(layer.numel for layer in layers))
    pruned = sum(int((~mask).sum()) for mask in saved.masks.values())
    return [f"masks: expected exactly {expected} pruned weights, got {pruned}"] if pruned != expected else []


def _pattern_faults(saved: SavedDetector, parameters: dict[str, Tensor]) -> list[str]:
    assert saved.recipe.sparsity is not None
    pattern = saved.recipe.sparsity.pattern
    n, m = (pattern.n, pattern.m) if pattern.type == "n_m" else (2, 4)
    violations = {name: check_n_m(parameters[name].detach(), n, m) for name in saved.masks}
    if pattern.type == "n_m_2d":  # along output channels too
        for name in saved.masks:
            violations[name] += check_n_m(parameters[name].detach().transpose(0, 1), n, m)
    return [
        f"{name}: expected at most {n} of every {m} weights, got {count} groups with more"
        for name, count in violations.items()
        if count
    ]
