"""Channel pattern: whole output channels go."""

import math
from typing import ClassVar, Literal

from torch import Tensor

from sparsedet.sparsity.patterns.pattern import BasePattern
from sparsedet.sparsity.patterns.units import lowest_units_mask, pool_units


class Channel(BasePattern):
    """Zeros in whole output channels: all weights of a filter, and with them what it adds to the layers behind.

    Of a filter the L2 norm counts. With a filter go its bias and, where a norm (batch, group, instance) reads
    the layer and nothing else, the norm's weight and bias: the channel is 0 then, not a constant. What adds up
    (residual connections, pyramids) stays alive as long as one of the summands is; weights that read a dead
    channel are left as they are and not counted. Layers that give the model's outputs are left out, because a
    dead class or box coordinate is of no use.

    A tensor loses the whole number of filters nearest to what the allocation gives it, so that the total comes as
    near to the target as whole filters allow (see `sparsedet.sparsity.allocation.rounding`).

    Source: Li et al., ICLR 2017 (arXiv:1608.08710), with the L2 norm.
    """

    type: Literal["channel"] = "channel"
    kills_channels: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Short name for tables."""
        return "channel"

    def unit(self, shape: tuple[int, ...]) -> int:
        """Return the weights of a filter."""
        return math.prod(shape[1:])

    def pooled(self, scores: Tensor) -> Tensor:
        """Return `scores` with one score for each filter, see `units.pool_units`."""
        filters = scores.flatten(1)
        return pool_units(filters, (1,)).expand(filters.shape).contiguous().view(scores.shape)

    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """Drop the filters with the lowest norms; of equal ones the first goes first."""
        return lowest_units_mask(scores.flatten(1), (1,), num_zeros).reshape(scores.shape)
