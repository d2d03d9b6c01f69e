"""Magnitude criterion: a weight matters as much as it is large."""

from typing import Literal

from torch import Tensor

from sparsedet.sparsity.criteria.criterion import BaseCriterion


class Magnitude(BaseCriterion):
    """Score of a weight = its absolute value.

    Source: Han et al. 2015 (arXiv:1506.02626).
    """

    type: Literal["magnitude"] = "magnitude"

    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first."""
        return weight.detach().abs().float()
