"""Sensitivity allocation: every tensor may cost the metric the same, by curves that were measured."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from sparsedet.common.config import ConfigModel, validate
from sparsedet.common.document import read_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.allocation.selection import Array, TensorSummary

_TIE_BREAK = 1e-6
"""Of the largest loss: what a whole tensor adds to a key, so that tensors without a loss lose the same share."""


class Point(ConfigModel):
    """One measurement of a curve.

    Attributes:
        target_sparsity: what was asked for.
        measured_sparsity: share of zeros in the weight while `value` was measured.
        value: the metric.
    """

    target_sparsity: Annotated[float, Field(ge=0, le=1)]
    measured_sparsity: Annotated[float, Field(ge=0, le=1)]
    value: float


class SensitivityCurves(ConfigModel):
    """A metric of a model with one weight pruned at a time; what `measure_sensitivity` returns and saves as JSON.

    Attributes:
        format: version of the file.
        fingerprint: hash of the weights and the criterion they were pruned by.
        dense: the metric of the model as it is.
        curves: measurements by full parameter name, in the order in which they were made.
        left_out: for every other weight the reason why it was not pruned.
    """

    format: Literal[1] = 1
    fingerprint: str
    dense: float
    curves: dict[str, list[Point]]
    left_out: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> "SensitivityCurves":
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        return validate(cls, read_yaml(path))  # JSON is YAML

    def losses(self, name: str) -> tuple[Array, Array]:
        """Return sparsities, rising from 0, and how far the metric is below `dense` there, never falling.

        Raises:
            ConfigError: the weight was not measured.
        """
        if not self.curves.get(name):
            raise ConfigError(
                f"sparsity.allocation.curves: expected a curve for '{name}', got none. Measure it with "
                "measure_sensitivity, or leave it out of the targets (with compensate: false it counts all the same)."
            )
        points = {0.0: 0.0}
        for point in self.curves[name]:
            at = point.measured_sparsity
            points[at] = max(points.get(at, 0.0), self.dense - point.value)
        sparsities = sorted(points)
        return np.array(sparsities), np.maximum.accumulate([points[sparsity] for sparsity in sparsities])

    @property
    def pairs(self) -> dict[str, list[tuple[float, float]]]:
        """For each weight pairs of the sparsity that was asked for and the metric, for plots.

        Where nothing went, as of a weight with one entry, which always stays, there is no pair: it would say that the
        weight can be pruned without a loss.
        """
        return {
            name: [(point.target_sparsity, point.value) for point in points if point.measured_sparsity > 0]
            for name, points in self.curves.items()
        }

    @cached_property
    def largest_loss(self) -> float:
        """How far the metric falls at most in any curve; 0 if it never falls."""
        return max((float(self.losses(name)[1][-1]) for name, points in self.curves.items() if points), default=0.0)


def _read(value: Any) -> Any:
    """Return the curves in the file that `value` names, in its place."""
    return SensitivityCurves.load(Path(value)) if isinstance(value, str | Path) else value


class Sensitivity(ConfigModel):
    """Prune every tensor until it alone would cost the metric d, with the one d that meets the total.

    The loss of a tensor is taken from its curve, straight between measurements, and never falls with the
    sparsity. Tensors of equal loss, such as those without any, lose the same share. What is beyond the last
    measurement of a curve goes only when nothing before it is left.

    Attributes:
        curves: from `measure_sensitivity`, or the path of the file that it wrote.

    Source: Li et al., ICLR 2017 (arXiv:1608.08710), sec. 3.2, for curves of single layers.
    """

    type: Literal["sensitivity"] = "sensitivity"
    curves: Annotated[SensitivityCurves, BeforeValidator(_read)]
    needs_profile: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = loss over the largest of all losses when half of the weight is gone (see `Keyed.key`)."""
        at, losses = self.curves.losses(tensor.name)
        share = (rank + 0.5) / tensor.size
        key = np.interp(share, at, losses) / (self.curves.largest_loss or 1.0) + _TIE_BREAK * share
        return np.where(share > at[-1], 2.0 + share, key)
