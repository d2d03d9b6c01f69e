"""Uniform allocation: every tensor gets the same sparsity."""

from typing import ClassVar, Literal

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.allocation.selection import Array, TensorSummary


class Uniform(ConfigModel):
    """Every chosen tensor of n weights loses ``round(t * n)``, with the one t that meets the total."""

    type: Literal["uniform"] = "uniform"
    needs_profile: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = share of the tensor that is gone when half of the weight is (see `Keyed.key`)."""
        result: Array = (rank + 0.5) / tensor.size
        return result
