"""Order of channels: one in which N:M keeps more, with the function of the network unchanged."""

from sparsedet.sparsity.permutation.permute import PermutationReport, PermutedGroup, check_fresh, permute_channels
from sparsedet.sparsity.permutation.search import kept_magnitude, search_permutation

__all__ = [
    "PermutationReport",
    "PermutedGroup",
    "check_fresh",
    "kept_magnitude",
    "permute_channels",
    "search_permutation",
]
