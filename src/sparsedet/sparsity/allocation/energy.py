"""Energy allocation: every tensor may lose the same share of its squared weights, less at high resolution."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.allocation.selection import Array, TensorSummary


class Energy(ConfigModel):
    """Prune the smallest e / f; e = share of the tensor's sum of squares that is gone once the weight is.

    ``f = (1 - 0.4 * tuning) ** (G - g)``; g is the stride group of the layer (see
    `profile.Profile.stride_groups`) and G the largest. Early layers hold few weights and do much of the work:
    with the default 0.5 each octave of resolution keeps 80 % of the energy that may be removed. This is
    sparsedet's own open rule for what MSBench calls ``prun_algo: 1``, whose rule is not public.

    Attributes:
        tuning: in [0, 2.5); 0 gives every tensor the same relative error, larger values spare early layers
            more.
    """

    type: Literal["energy"] = "energy"
    tuning: Annotated[float, Field(ge=0, lt=2.5)] = 0.5
    needs_profile: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = e / f (see `Keyed.key`)."""
        if tensor.energy == 0:
            return np.zeros_like(score)
        result: Array = (energy_below + np.square(score)) / tensor.energy / (1 - 0.4 * self.tuning) ** tensor.depth
        return result
