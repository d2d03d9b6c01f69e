"""Making masks: how many zeros each weight gets, and where."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsedet.sparsity.allocation.selection import not_finite
from sparsedet.sparsity.budget import Budget
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.config import SparsityConfig
from sparsedet.sparsity.criteria import Obc
from sparsedet.sparsity.distributed import whole
from sparsedet.sparsity.growth import swap
from sparsedet.sparsity.masked import MaskedTensors
from sparsedet.sparsity.weights import Weight

_INFINITE_BITS = 0x7F800000  # of the float32 inf; those of NaN are larger


class MaskMaker:
    """Makes masks of the weights as they are now (see `MaskedTensors.dense`); only `obc` changes these.

    Args:
        config: what to prune and how much.
        model: the plain module.
        scored: the weights whose scores count in the allocation.
        masked: the chosen weights and their masks so far.
        budget: how much falls to each; None: what the pattern gives.
        calibration: data for a criterion that looks at some.
    """

    def __init__(
        self,
        config: SparsityConfig,
        model: nn.Module,
        scored: Sequence[Weight],
        masked: MaskedTensors,
        budget: Budget | None,
        calibration: Calibration | None,
    ) -> None:
        self._config = config
        self._model = model
        self._scored = scored
        self._masked = masked
        self._budget = budget
        self._calibration = calibration
        self._statistics: dict[str, Tensor] = {}

    def counts(self, targets: Sequence[float]) -> list[list[int]]:
        """Return the number of zeros of each chosen weight, for each of `targets`.

        Raises:
            UnreachableTargetError: more is pruned already than a target says.
            SparseDetError: a weight that the allocation looks at is NaN or infinite.
        """
        with self._calibrated():
            return self._counts(targets)

    @torch.no_grad()
    def make(self, target: float) -> dict[str, Tensor]:
        """Return bool masks of the chosen weights, True = keep, on the CPU; `obc` changes what stays as well.

        Raises:
            UnreachableTargetError: more is pruned already.
            SparseDetError: a weight is NaN or infinite.
        """
        with self._calibrated():
            (counts,) = self._counts([target])
            criterion, pattern, weights = self._config.criterion, self._config.pattern, self._masked.weights
            if isinstance(criterion, Obc):
                assert self._calibration is not None
                olds = {name: mask for name in weights if (mask := self._fixed(name)) is not None}
                return criterion.prune_(self._model, tuple(weights.values()), counts, olds, pattern, self._calibration)
            keeps = {}
            for (name, weight), count in zip(weights.items(), counts, strict=True):
                scores, old = self._finite_scores(weight), self._fixed(name)
                if old is None:
                    keeps[name] = pattern.mask(scores, count)
                else:  # what is pruned goes first again
                    keeps[name] = old & pattern.mask(torch.where(old, scores, -1.0), count)
            return keeps

    @torch.no_grad()
    def grow(self, share: float) -> dict[str, Tensor]:
        """Drop `share` of what is kept and grow as much by the gradients of the last step; see `swap`.

        Raises:
            SparseDetError: a weight is NaN or infinite.
        """
        keeps = {}
        with self._calibrated():
            for name, weight in self._masked.weights.items():
                keep, scores = self._masked.masks[name].keep.cpu(), self._finite_scores(weight)
                gradient = self._masked.whole_gradient(name).cpu().contiguous()
                if gradient.any():  # a frozen weight has none
                    keep = swap(self._config.pattern, keep, scores, gradient, share)
                keeps[name] = keep
        return keeps

    def _counts(self, targets: Sequence[float]) -> list[list[int]]:
        weights = self._masked.weights
        if self._budget is None:
            fixed = self._config.pattern.fixed_sparsity or 0
            return [[round(weight.tensor.numel() * fixed) for weight in weights.values()] for _ in targets]
        olds = ((name, self._fixed(name)) for name in weights)
        num_pruned = {name: old.numel() - int(old.count_nonzero()) for name, old in olds if old is not None}
        return self._budget.counts(targets, self._scores_of_kept, num_pruned)

    def _fixed(self, name: str) -> Tensor | None:
        """Return the mask, on the CPU, of what has to stay pruned; None: nothing."""
        if self._config.keep_pruned_values:
            return None
        if name in self._masked.masks:
            return self._masked.masks[name].keep.cpu().contiguous()
        if self._config.keep_zeros and name in self._masked.weights:
            return (whole(self._masked.tensor(name)).detach() != 0).cpu().contiguous()
        return None

    @torch.no_grad()
    def _scores(self, weight: Weight) -> Tensor:
        statistic = self._statistics.get(weight.name)
        return self._config.criterion.scores(whole(weight.tensor), weight.name, statistic).cpu().contiguous()

    def _finite_scores(self, weight: Weight) -> Tensor:
        scores = self._scores(weight)
        if scores.numel() and int(scores.view(torch.int32).max()) >= _INFINITE_BITS:
            raise not_finite(weight.name)
        return scores

    def _check_finite(self) -> None:
        for weight in self._scored:
            if not whole(weight.tensor).isfinite().all():
                raise not_finite(weight.name)

    def _scores_of_kept(self, weight: Weight) -> NDArray[np.float32]:
        """Return the scores of all entries, flat; 0 where pruned."""
        scores = self._scores(weight)
        if weight.name in self._masked.weights:
            scores = self._config.pattern.pooled(scores)
        old = self._fixed(weight.name)
        if old is not None:
            scores = torch.where(old, scores, 0.0)
        return scores.numpy().reshape(-1)

    @contextmanager
    def _calibrated(self) -> Iterator[None]:
        """Have statistics of the model as it is now for the criterion, if it needs any."""
        if self._calibration is not None and self._config.criterion.needs_calibration:
            self._check_finite()  # otherwise the data would be blamed
            self._statistics = self._config.criterion.statistics(self._model, self._scored, self._calibration)
        try:
            yield
        finally:
            self._statistics = {}
