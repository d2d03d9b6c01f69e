"""Patterns: where zeros may stand in a tensor."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.patterns.block import Block
from sparsedet.sparsity.patterns.channel import Channel
from sparsedet.sparsity.patterns.n_m import NM, check_n_m, n_m_mask
from sparsedet.sparsity.patterns.n_m_2d import NM2D, n_m_2d_mask
from sparsedet.sparsity.patterns.unstructured import Unstructured, unstructured_mask

PATTERNS = {"unstructured": Unstructured, "n_m": NM, "n_m_2d": NM2D, "block": Block, "channel": Channel}
"""Name in a recipe -> class."""

Pattern = Annotated[Unstructured | NM | NM2D | Block | Channel, Field(discriminator="type")]
"""What `pattern:` accepts."""

__all__ = [
    "NM",
    "NM2D",
    "PATTERNS",
    "Block",
    "Channel",
    "Pattern",
    "Unstructured",
    "check_n_m",
    "n_m_2d_mask",
    "n_m_mask",
    "unstructured_mask",
]
