"""LAMP allocation: layer-adaptive magnitude, the best rule measured here on detectors."""

from typing import ClassVar, Literal

import numpy as np

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.allocation.selection import Array, TensorSummary


class Lamp(ConfigModel):
    """Score of a weight = w² over the sum of squares of all weights of its tensor that are not smaller.

    As in the paper weights of equal magnitude are taken in the order of their index, so a tensor of equal
    weights loses them one by one. Needs neither data nor a parameter; keeps more multiplications than other
    rules do.

    Source: Lee et al., ICLR 2021 (arXiv:2010.07611), eq. 1.
    """

    type: Literal["lamp"] = "lamp"
    needs_profile: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = the LAMP score (see `Keyed.key`)."""
        squared = np.square(score)
        # The sum holds the weight itself, which also keeps rounding and bucket borders from making it too
        # small.
        remaining = np.maximum(tensor.energy - energy_below, squared)
        return np.divide(squared, remaining, out=np.zeros_like(squared), where=remaining > 0)
