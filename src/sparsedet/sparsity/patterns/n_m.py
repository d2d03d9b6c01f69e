"""N:M pattern: N weights stay in each M consecutive input channels (2:4 is what sparse tensor cores run)."""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError, UnsupportedShapeError
from sparsedet.sparsity.patterns.pattern import BasePattern


def _default_eligibility(values: dict[str, Any]) -> Literal["asp", "divisible"]:
    return "asp" if (values.get("n"), values.get("m")) == (2, 4) else "divisible"


class NM(BasePattern):
    """Keep exactly `n` of every `m` consecutive input channels, for each output channel and kernel position.

    Attributes:
        n: weights that stay in a group.
        m: size of a group.
        eligibility: which layers are served. ``asp`` (default for 2:4): those that NVIDIA's ASP takes because
            the sparse kernels need it, out_channels % 8 == 0 and in_channels/groups % 16 == 0 (and % m == 0);
            ``divisible`` (default for other n and m, for which there are no such kernels): all with
            in_channels/groups % m == 0. Transposed convolutions are never served.
        permute: reorder the channels of the network before the first masks are made, so that more is kept and its
            function stays the same, see `sparsedet.sparsity.permute_channels`. Needs example inputs.

    Source: Mishra et al. 2021 (arXiv:2104.08378), sec. 3; layout and eligibility as NVIDIA ASP ``m4n2_1d``.
    """

    type: Literal["n_m"] = "n_m"
    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=2)] = 4
    eligibility: Literal["asp", "divisible"] = Field(default_factory=_default_eligibility)
    permute: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n >= self.m:
            raise ConfigError(f"n: expected less than m={self.m}, got {self.n}. Write for example n: 2, m: 4.")
        return self

    @property
    def fixed_sparsity(self) -> float | None:
        """Sparsity that the pattern itself gives every tensor."""
        return 1 - self.n / self.m

    @property
    def label(self) -> str:
        """Short name for tables, such as ``2:4``."""
        return f"{self.n}:{self.m}"

    def unserved(self, module: nn.Module) -> str | None:
        """Return the rule by which the pattern cannot serve the weight of `module`; None: it can."""
        if refusal := super().unserved(module):
            return refusal
        assert isinstance(module.weight, Tensor)
        num_out, num_in = module.weight.shape[:2]
        if num_in % self.m:
            return f"{self.label} needs in_channels/groups % {self.m} == 0, got {num_in}"
        return asp_rule(self.label, num_out, num_in) if self.eligibility == "asp" else None

    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """See `n_m_mask`; `num_zeros` follows from n and m and is ignored."""
        return n_m_mask(scores, self.n, self.m)


def asp_rule(label: str, num_out: int, num_in: int) -> str | None:
    """Return how a weight of shape (num_out, num_in, …) fails NVIDIA ASP's rule; None: it does not."""
    if num_out % 8 or num_in % 16:
        return f"{label} (asp) needs out_channels % 8 == 0 and in_channels/groups % 16 == 0, got {num_out} and {num_in}"
    return None


def n_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the `n` highest scores in every group of `m` along the input dimension.

    Args:
        scores: importance, shape (O, I) or (O, I, *kernel); higher is kept.
        n: kept weights per group, 1 <= n <= m.
        m: group size; must divide I.

    Returns:
        Bool mask of the same shape, True = keep. Ties keep the lower index.

    Raises:
        UnsupportedShapeError: I is not a multiple of `m`.

    Source: Mishra et al. 2021 (arXiv:2104.08378), sec. 3; grouping along I as NVIDIA ASP ``m4n2_1d``.

    Example:
        >>> n_m_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, 4)
        tensor([[ True, False,  True, False]])
    """
    lanes = _groups(scores, m).unbind(2)
    keep = []
    for index, lane in enumerate(lanes):
        num_better = torch.zeros_like(lane, dtype=torch.int16)
        for other_index, other in enumerate(lanes):
            if other_index != index:
                num_better += other >= lane if other_index < index else other > lane
        keep.append(num_better < n)
    return torch.stack(keep, dim=2).reshape(scores.shape)


def check_n_m(weight: Tensor, n: int, m: int) -> int:
    """Count the groups of `m` consecutive input channels that hold more than `n` non-zeros.

    Args:
        weight: shape (O, I) or (O, I, *kernel).
        n: allowed non-zeros per group.
        m: group size; must divide I.

    Raises:
        UnsupportedShapeError: I is not a multiple of `m`.
    """
    return int((_groups(weight.detach(), m).count_nonzero(dim=2) > n).sum())


def _groups(tensor: Tensor, m: int) -> Tensor:
    """View (O, I, *kernel) as (O, I/m, m, *kernel)."""
    if tensor.ndim < 2 or tensor.shape[1] % m:
        raise UnsupportedShapeError(
            f"weight: expected a number of input channels (dim 1) divisible by m={m}, "
            f"got shape {tuple(tensor.shape)}. Choose another m, or leave this weight out."
        )
    return tensor.reshape(tensor.shape[0], -1, m, *tensor.shape[2:])
