"""Erdős–Rényi–kernel allocation: large tensors get more sparsity, from shapes alone."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.allocation.selection import Array, TensorSummary


class Erk(ConfigModel):
    """Density = ``min(1, eps * (sum(shape) / prod(shape)) ** power)``, with the eps that meets the total.

    Attributes:
        power: 1 is the usual rule; 0 is uniform; MSBench uses 0.5.

    Source: Evci et al., ICML 2020 (arXiv:1911.11134), sec. 3.
    """

    type: Literal["erk"] = "erk"
    power: Annotated[float, Field(ge=0)] = 1.0
    needs_profile: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = 1 / eps at which half of the weight is above the density (see `Keyed.key`)."""
        shape_factor = (sum(tensor.shape) / math.prod(tensor.shape)) ** self.power
        result: Array = shape_factor * tensor.size / (tensor.size - rank - 0.5)
        return result
