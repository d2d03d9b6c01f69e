"""Gradient criterion: a weight matters as much as the loss would change without it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.calibration import Calibration, call_on_batch, sum_of_counts
from sparsedet.sparsity.criteria.criterion import BaseCriterion
from sparsedet.sparsity.distributed import is_sharded, sum_over_processes_
from sparsedet.sparsity.undisturbed import undisturbed
from sparsedet.sparsity.weights import Weight, unwrap

_LAYERS = (_NormBase, _DropoutNd, nn.MultiheadAttention)
"""What behaves in another way in training, and stays a layer where it holds modules: timm's BatchNormAct2d does."""


class Gradient(BaseCriterion):
    """Score of a weight = |weight × gradient of the loss|, the mean over batches of calibration data.

    That is how much the loss of a batch changes without the weight, to first order.

    Attributes:
        num_batches: batches that are looked at, at most.

    Source: Molchanov et al., ICLR 2017 (arXiv:1611.06440), for single weights.
    """

    type: Literal["gradient"] = "gradient"
    num_batches: int = Field(default=16, ge=1)
    needs_calibration: ClassVar[bool] = True

    def statistics(self, model: nn.Module, weights: Sequence[Weight], calibration: Calibration) -> dict[str, Tensor]:
        """Return the scores; one gradient and one sum for each weight are held in memory.

        Raises:
            ConfigError: the calibration has no loss, the loss of no batch depends on one of the weights, or they are
                sharded (FSDP2).
        """
        if calibration.loss is None:
            raise ConfigError(
                "calibration.loss: expected a function that returns the loss of a batch, which the criterion "
                "'gradient' needs, got None. Add it."
            )
        plain = unwrap(model)
        _check_whole(weights)
        tensors = [weight.tensor for weight in weights]
        totals = [torch.zeros(tensor.shape, device=tensor.device) for tensor in tensors]
        is_used = torch.zeros(len(tensors), device=tensors[0].device)
        batches = calibration.first(self.num_batches, weights)
        with ExitStack() as stack:
            stack.enter_context(undisturbed(plain))
            _train_containers(plain)
            for tensor in tensors:
                if tensor.is_leaf and not tensor.requires_grad:
                    stack.callback(tensor.requires_grad_, False)
                    tensor.requires_grad_(True)
            stack.enter_context(torch.enable_grad())
            for batch in batches:
                gradients = _gradients(call_on_batch("calibration.loss", calibration.loss, plain, batch), tensors)
                for index, (total, tensor, gradient) in enumerate(zip(totals, tensors, gradients, strict=True)):
                    if gradient is not None:
                        total += (tensor.detach().float() * gradient.float()).abs_()
                        is_used[index] = 1
        sum_over_processes_(is_used)
        if not is_used.all():
            name = weights[int(is_used.argmin())].name
            raise ConfigError(
                f"calibration.loss: expected a loss that depends on every weight that is pruned, got one that does not "
                f"depend on '{name}'. Add it to targets.exclude, or let the loss use it. With compensate: false the "
                "scores of what is left out count too: use the criterion 'magnitude' if it cannot have one."
            )
        num_batches = sum_of_counts(len(batches))
        for weight, total in zip(weights, totals, strict=True):
            sum_over_processes_(total)
            total /= num_batches
            if not total.isfinite().all():
                raise ConfigError(
                    f"calibration.loss: expected finite gradients, got inf or NaN at '{weight.name}'. Look at the data."
                )
        return {weight.name: total for weight, total in zip(weights, totals, strict=True)}

    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the importance of each weight: float32, >= 0, shape of `weight`; lower goes first."""
        assert statistic is not None
        return statistic


def _check_whole(weights: Sequence[Weight]) -> None:
    for weight in weights:
        if is_sharded(weight.tensor):  # its gradient is a mean over the processes, not that of a batch
            raise ConfigError(
                f"criterion: expected one that serves weights that are sharded (FSDP2), such as '{weight.name}', got "
                "'gradient'. Make the masks before fully_shard(model), with the same sparsifier, or use 'activation'."
            )


def _train_containers(model: nn.Module) -> None:
    """Put modules that hold others into training mode, where they give losses; layers stay in eval mode."""
    for module in model.modules():
        has_children = next(module.children(), None) is not None
        module.training = has_children and not isinstance(module, _LAYERS)


def _gradients(loss: Any, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            f"calibration.loss: expected a function that returns a scalar with a gradient, got {got}. "
            "Return the sum of the terms of the loss, computed with gradients."
        )
    return torch.autograd.grad(loss.sum(), tensors, allow_unused=True)
