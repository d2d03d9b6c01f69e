"""Patterns: where zeros may stand in a tensor."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.patterns.n_m import NM, check_n_m, n_m_mask
from sparsedet.sparsity.patterns.unstructured import Unstructured, unstructured_mask

PATTERNS = {"unstructured": Unstructured, "n_m": NM}
"""Name in a recipe -> class."""

Pattern = Annotated[Unstructured | NM, Field(discriminator="type")]
"""What `pattern:` accepts."""

__all__ = ["NM", "PATTERNS", "Pattern", "Unstructured", "check_n_m", "n_m_mask", "unstructured_mask"]
