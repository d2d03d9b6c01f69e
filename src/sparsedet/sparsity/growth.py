"""Drop and grow: the places of a tensor's kept weights move, their number stays."""

import torch
from torch import Tensor

from sparsedet.sparsity.patterns import Pattern


def swap(pattern: Pattern, keep: Tensor, scores: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Return a mask with as many kept weights as `keep`, some of them at other places.

    Of the kept ones the `share` (rounded down, in units of the pattern) with the lowest scores goes; of all that
    are pruned then, as many with the largest gradient come. A weight may go and come back at once.

    Args:
        pattern: where zeros may stand.
        keep: bool, CPU, True = keep.
        scores: importance of the weights, float32 >= 0, CPU, shape of `keep`.
        gradient: shape of `keep`, CPU; NaN and infinity count as 0.
        share: in [0, 1].

    Source: Evci et al. 2020 (arXiv:1911.11134), sec. 3 (3), (4).
    """
    num_zeros, unit = int((~keep).sum()), pattern.unit(tuple(keep.shape))
    num_moved = int(share * ((keep.numel() - num_zeros) // unit)) * unit
    stays = pattern.mask(torch.where(keep, scores, -1.0), num_zeros + num_moved)
    growth = gradient.float().abs().nan_to_num(nan=0.0, posinf=0.0)
    growth /= growth.max().clamp_min(torch.finfo(torch.float32).tiny)  # at most 1: below what stays
    return pattern.mask(torch.where(stays, 2.0, growth), num_zeros)
