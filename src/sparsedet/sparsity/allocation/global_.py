"""Global allocation: one threshold on the scores of all tensors."""

from typing import ClassVar, Literal

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.allocation.selection import Array, TensorSummary


class Global(ConfigModel):
    """The smallest scores of all chosen tensors go.

    Tensors whose weights are small as a whole lose nearly everything (up to the limit of 99 %).

    Source: Han et al. 2015 (arXiv:1506.02626); Frankle and Carbin 2019 (arXiv:1803.03635).
    """

    type: Literal["global"] = "global"
    needs_profile: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True

    def key(self, tensor: TensorSummary, rank: Array, score: Array, energy_below: Array) -> Array:
        """Key = score (see `Keyed.key`)."""
        return score
