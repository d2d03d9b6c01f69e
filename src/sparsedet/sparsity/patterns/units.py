"""Weights that go or stay together: one score for each such unit, and the units with the lowest scores go.

Units are given by a view of the tensor in which some dimensions run inside a unit.
"""

from torch import Tensor

from sparsedet.sparsity.patterns.unstructured import unstructured_mask


def pool_units(scores: Tensor, inside: tuple[int, ...]) -> Tensor:
    """Return the root mean square of the scores of each unit: its L2 norm, per weight.

    Norms alone could not be compared between tensors whose units differ in size.

    Args:
        scores: importance, float32; >= 0, or -1 for what must go first.
        inside: dimensions that run inside a unit.

    Returns:
        Float32, with the dimensions `inside` of size 1. A unit with a -1 gets -1.

    Example:
        >>> pool_units(torch.tensor([[3.0, 4.0], [1.0, -1.0]]), (1,))
        tensor([[ 3.5355],
                [-1.0000]])
    """
    pooled = scores.double().square_().mean(inside, keepdim=True).sqrt_().float()
    return pooled.masked_fill_(scores.amin(inside, keepdim=True) < 0, -1)


def lowest_units_mask(scores: Tensor, inside: tuple[int, ...], num_zeros: int) -> Tensor:
    """Drop the units with the lowest scores, `num_zeros` weights in all (a multiple of the unit's size).

    Returns:
        Bool mask, shape of `scores`, True = keep. Of equal units the one that comes first goes first.
    """
    pooled = pool_units(scores, inside)
    unit = scores.numel() // pooled.numel()
    return unstructured_mask(pooled, num_zeros // unit).expand(scores.shape).contiguous()
