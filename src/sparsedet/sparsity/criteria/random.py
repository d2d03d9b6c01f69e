"""Random criterion: every weight matters as much as any other, a control for the rest."""

import zlib
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sparsedet.sparsity.criteria.criterion import BaseCriterion, infinite_where_faulty


class Random(BaseCriterion):
    """Score of a weight = a random number in (0, 1].

    The numbers depend on `seed`, on the name of the tensor and on nothing else: they are the same at every level, in
    every process and on every device.

    Attributes:
        seed: another one gives other numbers.
    """

    type: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0)

    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first."""
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        numbers = 1 - torch.from_numpy(generator.random(tuple(weight.shape), dtype=np.float32))
        return infinite_where_faulty(numbers.to(weight.device), weight)
