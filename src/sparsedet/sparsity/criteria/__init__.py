"""Criteria: which weight of a tensor matters."""

from sparsedet.sparsity.criteria.magnitude import Magnitude

CRITERIA = {"magnitude": Magnitude}
"""Name in a recipe -> class."""

Criterion = Magnitude
"""What `criterion:` accepts; becomes a union discriminated by `type` with the second criterion."""

__all__ = ["CRITERIA", "Criterion", "Magnitude"]
