"""Optimal brain compression: prune a layer and change what stays so that its outputs change least."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.common.processes import num_processes
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.criteria.criterion import BaseCriterion
from sparsedet.sparsity.criteria.inputs import check_called, check_finite, num_groups, watch_inputs
from sparsedet.sparsity.criteria.magnitude import Magnitude
from sparsedet.sparsity.distributed import (
    copy_from_first_process_,
    own_part,
    shard_like,
    sum_over_processes_,
    whole,
)
from sparsedet.sparsity.patterns import NM, Pattern
from sparsedet.sparsity.undisturbed import undisturbed
from sparsedet.sparsity.weights import Weight, unwrap

_NUM_ROUNDS = 8
_NUM_ITERATIONS = 5
_NUM_LAST_ITERATIONS = 20
_MAX_BYTES = 4 * 2**30
"""Of the products of the features of one layer; twice as much memory is needed meanwhile."""

Run = Callable[[nn.Module, Any], object]


class Obc(BaseCriterion):
    """Prune layer after layer with calibration data, and let the weights that stay make up for those that go.

    For each layer, in the order in which the model calls them, W is sought with the zeros that are asked for and the
    least ``‖(W₀ - W) X‖² + λ ‖W₀ - W‖²``, where W₀ is its weight and X are the features that it reads, in the model as
    it is pruned so far. Zeros are made in a few rounds, in each where |weight| × norm of the feature is least; after
    each, conjugate gradients bring what stays near to its optimum, for all rows of W at once. How many go, the
    allocation says, which looks at magnitudes.

    All layers but transposed convolutions are served, and all patterns. X is held as X Xᵀ, one layer at a time:
    (groups, features, features) in float32, and once more with λ; layers for which it would take more than 4 GiB
    (32768 features) are refused. Takes one forward pass over the data for each layer. Biases stay.

    Attributes:
        num_batches: batches that are looked at, at most; they are held in memory.
        damping: λ as a share of the mean squared norm of a feature.

    Source: the problem is that of Frantar & Alistarh, NeurIPS 2022 (OBC, arXiv:2208.11580) and ICML 2023 (SparseGPT,
    arXiv:2301.00774); rounds and choice as Boža 2024 (arXiv:2401.02938), conjugate gradients as Meng et al., NeurIPS
    2024 (ALPS, arXiv:2406.07831). A sweep over the columns, as in SparseGPT, left 1.2 to 8 times the error.
    """

    type: Literal["obc"] = "obc"
    num_batches: int = Field(default=16, ge=1)
    damping: float = Field(default=0.01, gt=0)
    needs_calibration: ClassVar[bool] = True
    updates_weights: ClassVar[bool] = True

    def check(self, weights: Sequence[Weight], calibration: Calibration | None) -> None:
        """See `BaseCriterion.check`."""
        super().check(weights, calibration)
        for weight in weights:
            if weight.is_transposed:
                raise UnsupportedShapeError(
                    "sparsity.criterion: expected one that serves transposed convolutions, such as "
                    f"'{weight.name}', got 'obc'. Use 'activation', or add them to targets.exclude."
                )
        sizes = {weight.name: 4 * num_groups(weight) * weight.tensor[0].numel() ** 2 for weight in weights}
        if large := [f"'{name}' ({size / 2**30:.1f} GiB)" for name, size in sizes.items() if size > _MAX_BYTES]:
            raise UnsupportedShapeError(
                f"sparsity.criterion: expected layers whose products of features fit into {_MAX_BYTES / 2**30:g} GiB, "
                f"since 'obc' holds (features of a row)² numbers, got {', '.join(large)}. Add these to "
                "targets.exclude, or use 'activation', which holds one number for each feature."
            )

    def scores(self, weight: Tensor, name: str = "", statistic: Tensor | None = None) -> Tensor:
        """Return the magnitudes, by which the allocation says how many weights of each tensor go."""
        return Magnitude().scores(weight)

    @torch.no_grad()
    def prune_(
        self,
        model: nn.Module,
        weights: Sequence[Weight],
        num_zeros: Sequence[int],
        keep: Mapping[str, Tensor],
        pattern: Pattern,
        calibration: Calibration,
    ) -> dict[str, Tensor]:
        """Zero entries of `weights` and change the rest of them.

        Args:
            model: the model; nothing else in it changes.
            weights: what to prune.
            num_zeros: how many entries of each go.
            keep: masks of what went before, by name, True = keep.
            pattern: where zeros may stand.
            calibration: the data.

        Returns:
            Bool masks by name, True = keep.

        Raises:
            ConfigError: no pass calls the layers of some of the weights, before anything is changed; or the features
                are not finite.
        """
        plain = unwrap(model)
        batches = calibration.first(self.num_batches, weights)
        counts = dict(zip((weight.name for weight in weights), num_zeros, strict=True))
        masks = {}
        with undisturbed(plain):
            for weight in self._in_order_of_calls(plain, weights, batches, calibration.run_on):
                products = _products(plain, weight, batches, calibration.run_on)
                rounds = _rounds(pattern, counts[weight.name], tuple(weight.tensor.shape))
                masks[weight.name] = self._prune_weight_(weight.tensor, products, rounds, keep.get(weight.name))
        return {weight.name: masks[weight.name] for weight in weights}

    def _in_order_of_calls(
        self, model: nn.Module, weights: Sequence[Weight], batches: Sequence[Any], run: Run
    ) -> list[Weight]:
        """Return `weights` in the order in which the model calls them, the same in every process."""
        called: dict[str, int] = {}

        def record(name: str, group: int, rows: Tensor) -> None:
            called[name] = called.get(name, 0) + 1

        with watch_inputs(model, weights, record):
            for batch in batches:
                if len(called) < len(weights):
                    run(model, batch)
        check_called({weight.name: called.get(weight.name, 0) for weight in weights}, self.type)
        names = [[*called, *(weight.name for weight in weights if weight.name not in called)]]
        if num_processes() > 1:
            torch.distributed.broadcast_object_list(names)
        by_name = {weight.name: weight for weight in weights}
        return [by_name[name] for name in names[0]]

    def _prune_weight_(
        self, tensor: Tensor, products: Tensor, rounds: Sequence[tuple[Pattern, int]], before: Tensor | None
    ) -> Tensor:
        target = whole(tensor).float().reshape(len(products), -1, products.shape[-1])
        norms = products.diagonal(dim1=-2, dim2=-1).sqrt()[:, None]
        products = damped(products, self.damping)
        weights = target
        keep = torch.ones(tensor.shape, dtype=torch.bool) if before is None else before.cpu()
        for index, (pattern, num_zeros) in enumerate(rounds):
            scores = (weights.abs() * norms).reshape(tensor.shape).cpu()
            keep = keep & pattern.mask(torch.where(keep, scores, -1.0), num_zeros)  # a first round may ask for less
            mask = keep.to(target.device).reshape(target.shape)
            num_iterations = _NUM_ITERATIONS if index + 1 < len(rounds) else _NUM_LAST_ITERATIONS
            weights = fit(weights, target, products, mask, num_iterations)
        copy_from_first_process_(weights)
        bits = keep.to(target.device, torch.uint8)
        copy_from_first_process_(bits)
        own_part(tensor).copy_(own_part(shard_like(weights.reshape(tensor.shape), tensor)))
        return bits.bool()


def fit(weights: Tensor, target: Tensor, products: Tensor, keep: Tensor, num_iterations: int) -> Tensor:
    """Bring weights nearer to the least error that is possible with some of them at zero.

    Args:
        weights: where to start, shape (groups, rows, features).
        target: the dense weights.
        products: X Xᵀ of the features, positive definite, shape (groups, features, features).
        keep: which may differ from zero, bool, shape of `weights`.
        num_iterations: of conjugate gradients, preconditioned by the diagonal, for each row on its own.

    Returns:
        Weights with a smaller ``(target - weights) products (target - weights)ᵀ``, zero where `keep` is False.
    """
    diagonal = products.diagonal(dim1=-2, dim2=-1)[:, None]
    weights = torch.where(keep, weights, 0)
    residual = torch.where(keep, (target - weights) @ products, 0)
    direction = residual / diagonal
    square = (residual * direction).sum(-1, keepdim=True)
    tiny = torch.finfo(weights.dtype).tiny
    for _ in range(num_iterations):
        change = torch.where(keep, direction @ products, 0)
        step = square / (direction * change).sum(-1, keepdim=True).clamp_min(tiny)
        weights = weights + step * direction
        residual = residual - step * change
        last, square = square, (residual.square() / diagonal).sum(-1, keepdim=True)
        direction = residual / diagonal + square / last.clamp_min(tiny) * direction
    return weights


def damped(products: Tensor, damping: float) -> Tensor:
    """Return `products` with `damping` times the mean of the diagonal (1 where that is 0) added to it."""
    mean = products.diagonal(dim1=-2, dim2=-1).mean(-1)
    added = torch.where(mean > 0, damping * mean, 1)
    result = products.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(added[:, None])
    return result


def _rounds(pattern: Pattern, num_zeros: int, shape: tuple[int, ...]) -> list[tuple[Pattern, int]]:
    """Return the patterns and counts that lead to those asked for: fewer and fewer weights go in each round."""
    if isinstance(pattern, NM):
        return [(pattern.model_copy(update={"n": n}), num_zeros) for n in range(pattern.m - 1, pattern.n - 1, -1)]
    if pattern.fixed_sparsity is not None:
        return [(pattern, num_zeros)]
    unit = pattern.unit(shape)
    shares = (1 - (1 - (index + 1) / _NUM_ROUNDS) ** 3 for index in range(_NUM_ROUNDS))
    return [(pattern, round(num_zeros // unit * share) * unit) for share in shares]


def _products(model: nn.Module, weight: Weight, batches: Sequence[Any], run: Run) -> Tensor:
    """Return the sums of products of the features of a weight, shape (groups, features, features), float32."""
    num_features = weight.tensor[0].numel()
    total = torch.zeros(num_groups(weight), num_features, num_features, device=weight.tensor.device)

    def record(name: str, group: int, rows: Tensor) -> None:
        total[group : group + len(rows)] += rows.mT @ rows

    with watch_inputs(model, [weight], record):
        for batch in batches:
            run(model, batch)
    sum_over_processes_(total)
    check_finite(weight.name, total)
    return total
