"""Counting the zeros of one tensor, the same way whatever file it comes from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedet.sparsity import check_n_m


@dataclass(frozen=True)
class TensorCount:
    """Zeros of one weight, counted in its values.

    Attributes:
        name: its name in the file.
        shape: its shape there.
        numel: number of its entries.
        num_zeros: entries that are +0.0 or -0.0.
        n_m_violations: groups of 4 consecutive input channels that hold more than 2 non-zeros; None where there
            is no dimension of input channels that 4 divides.
        num_dead_channels: output channels whose weights are all zero.
        num_not_finite: entries that are NaN or infinite.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    num_zeros: int
    n_m_violations: int | None
    num_dead_channels: int
    num_not_finite: int = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.num_zeros / max(self.numel, 1)


@torch.no_grad()
def count_tensor(name: str, weight: Tensor) -> TensorCount:
    """Count the zeros of `weight`.

    Args:
        name: its name, for the result.
        weight: shape (O, I, *kernel) or any other; of fewer than two dimensions nothing but zeros is counted.
    """
    numel = weight.numel()
    has_inputs = weight.ndim >= 2 and numel > 0
    return TensorCount(
        name=name,
        shape=tuple(weight.shape),
        numel=numel,
        num_zeros=numel - int(torch.count_nonzero(weight)),
        n_m_violations=check_n_m(weight, 2, 4) if has_inputs and weight.shape[1] % 4 == 0 else None,
        num_dead_channels=int((weight.flatten(1).count_nonzero(1) == 0).sum()) if has_inputs else 0,
        num_not_finite=numel - int(weight.isfinite().sum()),
    )
