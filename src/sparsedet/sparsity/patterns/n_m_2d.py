"""2:4 in both directions: in each block of 4x4 channels two weights stay in every row and every column."""

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.sparsity.patterns.n_m import asp_rule
from sparsedet.sparsity.patterns.pattern import BasePattern

_CHUNK = 1 << 13
"""Blocks worked on at a time: their 90 sums stay in the cache."""


class NM2D(BasePattern):
    """2:4 along input *and* output channels, so that the transposed weight of the backward pass is 2:4 too.

    A block is four consecutive output channels by four consecutive input channels, at one kernel position. ASP's
    rule says which layers are served; what it leaves over no 4x4 blocks fill anyway.

    Attributes:
        method: ``best`` keeps the largest sum that any of the 90 allowed blocks keeps: exactly 50 % zeros.
            ``greedy`` keeps weights from the largest down as long as row and column have room, as NVIDIA's ASP
            ``m4n2_2d_greedy``; it keeps less, and about 2 % of its places end up empty: more than 50 % zeros.

    Source: Hubara et al., NeurIPS 2021 (arXiv:2102.08124), sec. 3, for masks that also hold transposed; layout,
    greedy rule and eligibility as NVIDIA ASP.
    """

    type: Literal["n_m_2d"] = "n_m_2d"
    method: Literal["best", "greedy"] = "best"

    @property
    def fixed_sparsity(self) -> float | None:
        """Sparsity that the pattern itself gives every tensor (``greedy``: at least)."""
        return 0.5

    @property
    def label(self) -> str:
        """Short name for tables."""
        return "2:4 2-D" if self.method == "best" else "2:4 2-D greedy"

    def unserved(self, module: nn.Module) -> str | None:
        """Return the rule by which the pattern cannot serve the weight of `module`; None: it can."""
        if refusal := super().unserved(module):
            return refusal
        assert isinstance(module.weight, Tensor)
        num_out, num_in = module.weight.shape[:2]
        groups = getattr(module, "groups", 1)
        if num_out // groups % 4:
            return f"{self.label} needs out_channels/groups % 4 == 0, got {num_out // groups}"
        return asp_rule(self.label, num_out, num_in)

    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """See `n_m_2d_mask`; `num_zeros` follows from the pattern and is ignored."""
        return n_m_2d_mask(scores, self.method)


def n_m_2d_mask(scores: Tensor, method: Literal["best", "greedy"] = "best") -> Tensor:
    """Keep two scores in every row and column of each 4x4 block of (output, input) channels.

    Args:
        scores: importance, float32, shape (O, I) or (O, I, *kernel); higher is kept.
        method: see `NM2D`.

    Returns:
        Bool mask of the same shape, True = keep. Of equally good blocks the one that keeps lower indices
        (row-major) is taken; ``greedy`` takes the lower index of equal scores first.

    Raises:
        UnsupportedShapeError: O or I is not a multiple of 4.

    Example:
        >>> n_m_2d_mask(torch.tensor([[9.0, 8, 7, 0], [9, 8, 7, 0], [1, 1, 1, 1], [1, 1, 1, 1]])).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 0, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    if scores.ndim < 2 or scores.shape[0] % 4 or scores.shape[1] % 4:
        raise UnsupportedShapeError(
            "weight: expected numbers of output and input channels (dims 0 and 1) divisible by 4, "
            f"got shape {tuple(scores.shape)}. Leave this weight out."
        )
    # (O/4, 4, I/4, 4, K) -> (O/4, I/4, K, 4, 4)
    blocks = scores.reshape(scores.shape[0] // 4, 4, scores.shape[1] // 4, 4, -1).permute(0, 2, 4, 1, 3)
    keep_of = _best if method == "best" else _greedy
    keep = torch.cat([keep_of(chunk) for chunk in torch.split(blocks.reshape(-1, 16), _CHUNK)])
    return keep.view(blocks.shape).permute(0, 3, 1, 4, 2).reshape(scores.shape)


def _best(blocks: Tensor) -> Tensor:
    """Return the best allowed block for each row of (B, 16)."""
    allowed = _allowed_blocks().to(blocks.device)
    # Sums of eight float32 in double precision are exact, so that equal blocks are equal.
    choice = (blocks.double() @ allowed.double().T).argmax(1)
    return allowed[choice]


def _greedy(blocks: Tensor) -> Tensor:
    """Return for each row of (B, 16) what is kept from the largest score down."""
    order = blocks.argsort(dim=1, descending=True, stable=True)
    index = torch.arange(len(blocks), device=blocks.device)
    room = blocks.new_full((len(blocks), 8), 2, dtype=torch.int8)  # in four rows, then in four columns
    keep = torch.zeros_like(blocks, dtype=torch.bool)
    for place in order.unbind(1):
        row, column = place // 4, place % 4 + 4
        fits = (room[index, row] > 0) & (room[index, column] > 0)
        keep[index, place] = fits
        room[index, row] -= fits.to(torch.int8)
        room[index, column] -= fits.to(torch.int8)
    return keep


def _allowed_blocks() -> Tensor:
    """Return all blocks with two True in every row and column, bool (90, 16), those with lower indices first."""
    rows = [tuple(index in pair for index in range(4)) for pair in itertools.combinations(range(4), 2)]
    blocks = torch.tensor(list(itertools.product(sorted(rows, reverse=True), repeat=4)))
    return blocks[(blocks.sum(1) == 2).all(1)].flatten(1)
