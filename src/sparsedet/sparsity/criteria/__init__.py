"""Criteria: which weight of a tensor matters."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.criteria.activation import Activation
from sparsedet.sparsity.criteria.gradient import Gradient
from sparsedet.sparsity.criteria.magnitude import Magnitude
from sparsedet.sparsity.criteria.obc import Obc
from sparsedet.sparsity.criteria.random import Random

CRITERIA = {"magnitude": Magnitude, "random": Random, "gradient": Gradient, "activation": Activation, "obc": Obc}
"""Name in a recipe -> class."""

Criterion = Annotated[Magnitude | Random | Gradient | Activation | Obc, Field(discriminator="type")]
"""What `criterion:` accepts."""

__all__ = ["CRITERIA", "Activation", "Criterion", "Gradient", "Magnitude", "Obc", "Random"]
