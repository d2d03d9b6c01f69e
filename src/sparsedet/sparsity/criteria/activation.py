"""Activation-aware criterion: a weight matters as much as what it adds to the output."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.criteria.criterion import BaseCriterion, infinite_where_faulty
from sparsedet.sparsity.criteria.inputs import check_called, check_finite, num_groups, watch_inputs
from sparsedet.sparsity.distributed import sum_over_processes_
from sparsedet.sparsity.undisturbed import undisturbed
from sparsedet.sparsity.weights import Weight, unwrap


class Activation(BaseCriterion):
    """Score of a weight = |weight| × L2 norm of the input feature that it is multiplied with, over calibration data.

    Its square is the squared error of the layer's outputs if this weight alone goes. All convolutions, linear layers
    and attention projections are served; for transposed convolutions the norm is that of the input channel, and a
    layer that is called several times counts with the sum over its calls.

    Attributes:
        num_batches: batches that are looked at, at most.

    Source: Sun et al., ICLR 2024 (Wanda, arXiv:2306.11695), here with convolutions.
    """

    type: Literal["activation"] = "activation"
    num_batches: int = Field(default=16, ge=1)
    needs_calibration: ClassVar[bool] = True

    @torch.no_grad()
    def statistics(self, model: nn.Module, weights: Sequence[Weight], calibration: Calibration) -> dict[str, Tensor]:
        """Return the norms, by which the weight is to be multiplied once their first dimension is repeated.

        Raises:
            ConfigError: no pass calls the layers of some of the weights, or their inputs are not finite.
        """
        plain = unwrap(model)
        sums = {weight.name: _zeros(weight) for weight in weights}
        num_calls = dict.fromkeys(sums, 0)

        def record(name: str, group: int, rows: Tensor) -> None:
            sums[name][group : group + len(rows)] += rows.square().sum(1)
            num_calls[name] += 1

        batches = calibration.first(self.num_batches, weights)
        with undisturbed(plain), watch_inputs(plain, weights, record):
            for batch in batches:
                calibration.run_on(plain, batch)
        check_called(num_calls, self.type)
        return {weight.name: _norms(weight, sums[weight.name]) for weight in weights}

    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first."""
        assert statistic is not None
        scores = weight.detach().abs().float() * statistic.repeat_interleave(len(weight) // len(statistic), 0)
        return infinite_where_faulty(scores, weight)


def _zeros(weight: Weight) -> Tensor:
    """Return room for a sum for each feature: shape (groups, features)."""
    tensor, groups = weight.tensor, num_groups(weight)
    return torch.zeros(groups, len(tensor) if weight.is_transposed else tensor[0].numel(), device=tensor.device)


def _norms(weight: Weight, sums: Tensor) -> Tensor:
    sum_over_processes_(sums)
    check_finite(weight.name, sums)
    shape = weight.tensor.shape
    if weight.is_transposed:
        return sums.sqrt().reshape(-1, *(1,) * (len(shape) - 1))
    return sums.sqrt().reshape(len(sums), *shape[1:])
