"""What the sparsifier needs of every criterion."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.weights import Weight


class BaseCriterion(ConfigModel, ABC):
    """Base of the criteria: a score for each weight, from the weight alone or from data too."""

    type: str
    needs_calibration: ClassVar[bool] = False
    """Whether the criterion looks at data."""
    updates_weights: ClassVar[bool] = False
    """Whether the criterion prunes weights itself and changes those that stay, see `Obc`."""

    def check(self, weights: Sequence[Weight], calibration: Calibration | None) -> None:
        """Check that `weights` can be pruned by this criterion.

        Raises:
            ConfigError: it needs data, and `calibration` is None.
            UnsupportedShapeError: it does not serve one of the weights.
        """
        if self.needs_calibration and calibration is None:
            raise ConfigError(
                f"calibration: expected data, which the criterion '{self.type}' looks at, got None. "
                "Pass calibration=Calibration(batches, run, loss), or use the criterion 'magnitude'."
            )

    def statistics(self, model: nn.Module, weights: Sequence[Weight], calibration: Calibration) -> dict[str, Tensor]:
        """Look at the data and return what `scores` needs, by name of the weight; the model stays as it was.

        Raises:
            ConfigError: the data do not give it.
        """
        return {}

    @abstractmethod
    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first.

        Args:
            weight: one weight of the model.
            name: its full name.
            statistic: what `statistics` gave for it.
        """


def infinite_where_faulty(scores: Tensor, weight: Tensor) -> Tensor:
    """Return `scores` with inf where `weight` is not finite, which makes pruning fail by name."""
    return torch.where(weight.detach().isfinite(), scores, torch.inf)
