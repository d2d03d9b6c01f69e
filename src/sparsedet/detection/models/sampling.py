"""Random choice of the few candidates that a two-stage detector is trained on in each image."""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.assignment import BACKGROUND


class BalancedSampler(ConfigModel):
    """Positives up to a share of the batch, and background for the rest of it.

    Draws from torch's global generator. Source: Ren et al. 2015 (arXiv:1506.01497), sec. 3.1.3.

    Attributes:
        batch_size: candidates per image; fewer where there are not enough.
        positive_share: largest share of them that is positive.
    """

    batch_size: PositiveInt
    positive_share: float = Field(ge=0, le=1)

    def sample(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices (int64) of the chosen positive and of the chosen background candidates.

        Args:
            matches: int64, shape (A,), what `MaxIoU.match` says of the candidates of one image.
        """
        positive = choose((matches >= 0).nonzero().squeeze(1), int(self.batch_size * self.positive_share))
        background = choose((matches == BACKGROUND).nonzero().squeeze(1), self.batch_size - len(positive))
        return positive, background


def choose(indices: Tensor, number: int) -> Tensor:
    """Return `number` of `indices` (shape (N,)) at random, or all of them, in their order, if there are no more."""
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]
