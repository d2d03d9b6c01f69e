"""Magnitude criterion: a weight matters as much as it is large."""

from typing import Literal

from torch import Tensor

from sparsedet.common.config import ConfigModel


class Magnitude(ConfigModel):
    """Score of a weight = its absolute value.

    Source: Han et al. 2015 (arXiv:1506.02626).
    """

    type: Literal["magnitude"] = "magnitude"

    def scores(self, weight: Tensor) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first."""
        return weight.detach().abs().float()
