"""Block pattern: rectangles of output and input channels go as a whole."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.sparsity.patterns.pattern import BasePattern
from sparsedet.sparsity.patterns.units import lowest_units_mask, pool_units

_INSIDE = (1, 3)


class Block(BasePattern):
    """Zeros in whole blocks of (output channels, input channels), each kernel position apart.

    Of a block the L2 norm counts. A tensor loses the whole number of blocks nearest to what the allocation gives
    it, so that the total comes as near to the target as whole blocks allow (see
    `sparsedet.sparsity.allocation.rounding`). Layers whose channels the shape does not divide are not served,
    nor are transposed convolutions.

    Attributes:
        shape: output and input channels of a block, such as (16, 1). The kernel positions of a convolution are
            apart because matrix kernels run over channels, position by position; of a 1x1 convolution and a
            linear layer it is a block of the matrix.

    Source: Narang et al. 2017 (arXiv:1711.02782), with the L2 norm in the place of the largest magnitude.
    """

    type: Literal["block"] = "block"
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @property
    def label(self) -> str:
        """Short name for tables, such as ``block 16x1``."""
        return f"block {self.shape[0]}x{self.shape[1]}"

    def unserved(self, module: nn.Module) -> str | None:
        """Return the rule by which the pattern cannot serve the weight of `module`; None: it can."""
        if refusal := super().unserved(module):
            return refusal
        assert isinstance(module.weight, Tensor)
        num_out, num_in = module.weight.shape[0] // getattr(module, "groups", 1), module.weight.shape[1]
        if num_out % self.shape[0] or num_in % self.shape[1]:
            return (
                f"{self.label} needs out_channels/groups % {self.shape[0]} == 0 and in_channels/groups % "
                f"{self.shape[1]} == 0, got {num_out} and {num_in}"
            )
        return None

    def unit(self, shape: tuple[int, ...]) -> int:
        """Return the weights of a block."""
        return self.shape[0] * self.shape[1]

    def pooled(self, scores: Tensor) -> Tensor:
        """Return `scores` with one score for each block, see `units.pool_units`."""
        blocks = self._blocks(scores)
        return pool_units(blocks, _INSIDE).expand(blocks.shape).contiguous().view(scores.shape)

    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """Drop the blocks with the lowest norms; of equal ones the first, by (output, input, position), goes first.

        Raises:
            UnsupportedShapeError: blocks do not fill the tensor.
        """
        return lowest_units_mask(self._blocks(scores), _INSIDE, num_zeros).reshape(scores.shape)

    def _blocks(self, tensor: Tensor) -> Tensor:
        """View (O, I, *kernel) as (O/h, h, I/w, w, K)."""
        height, width = self.shape
        if tensor.ndim < 2 or tensor.shape[0] % height or tensor.shape[1] % width:
            raise UnsupportedShapeError(
                f"weight: expected channels that blocks of {height}x{width} (output x input) fill, "
                f"got shape {tuple(tensor.shape)}. Choose another shape, or leave this weight out."
            )
        return tensor.reshape(tensor.shape[0] // height, height, tensor.shape[1] // width, width, -1)
