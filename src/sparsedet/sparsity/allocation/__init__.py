"""Allocations: how much of the total sparsity each tensor gets."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.allocation.energy import Energy
from sparsedet.sparsity.allocation.erk import Erk
from sparsedet.sparsity.allocation.global_ import Global
from sparsedet.sparsity.allocation.lamp import Lamp
from sparsedet.sparsity.allocation.sensitivity import Sensitivity, SensitivityCurves
from sparsedet.sparsity.allocation.uniform import Uniform

ALLOCATIONS = {
    "uniform": Uniform,
    "erk": Erk,
    "global": Global,
    "lamp": Lamp,
    "energy": Energy,
    "sensitivity": Sensitivity,
}
"""Name in a recipe -> class."""

Allocation = Annotated[Uniform | Erk | Global | Lamp | Energy | Sensitivity, Field(discriminator="type")]
"""What `allocation:` accepts."""

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Energy",
    "Erk",
    "Global",
    "Lamp",
    "Sensitivity",
    "SensitivityCurves",
    "Uniform",
]
