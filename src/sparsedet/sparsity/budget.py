"""How many zeros each weight gets at each level: targets and limits of a configuration, worked out for a model."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import TargetMatchError, UnreachableTargetError
from sparsedet.sparsity.allocation import Allocation, Uniform
from sparsedet.sparsity.allocation.rounding import Countable, round_to_units, rounded_up
from sparsedet.sparsity.allocation.selection import MAX_PERCENT, ScoredTensor, max_zeros, select_counts
from sparsedet.sparsity.config import SparsityConfig
from sparsedet.sparsity.profile import Profile
from sparsedet.sparsity.targets import Selected, match
from sparsedet.sparsity.weights import Weight


@dataclass(frozen=True)
class _Part:
    """One weight that takes part in the allocation; see `ScoredTensor` for the numbers."""

    weight: Weight
    is_chosen: bool
    numel: int
    unit: int
    lowest: int
    highest: int
    cost: float
    depth: int


class Budget:
    """Targets and limits of a configuration, worked out for a model.

    What takes part in the allocation are the chosen weights; with ``compensate: false`` all of them, and what falls
    to those that are left out is not pruned. With `Uniform`, ``compensate: false`` and the pattern unstructured every
    weight has a count of its own: the target of its n entries, rounded up, as MSBench does.

    Args:
        config: what to prune and how much.
        allocation: how it is shared.
        weights: all weights of the model.
        selection: one row for each of them.
        profile: MACs and stride groups; may be None if neither is needed.
        predictions: see `targets.match`.

    Raises:
        TargetMatchError: a limit is for no chosen weight.
        UnreachableTargetError: the limits do not allow a target.
    """

    def __init__(
        self,
        config: SparsityConfig,
        allocation: Allocation,
        weights: Sequence[Weight],
        selection: Sequence[Selected],
        profile: Profile | None,
        predictions: Collection[str] | None,
    ) -> None:
        self._config = config
        self._allocation = allocation
        self._num_macs = profile.num_macs if profile is not None and config.budget == "macs" else None
        groups = profile.stride_groups if profile is not None else {}
        coarsest = max(groups.values(), default=0)
        limits = self._limits(weights, selection, predictions)
        self._parts = []
        for weight, row in zip(weights, selection, strict=True):
            if row.chosen or (not config.compensate and _has_scores(weight)):
                unit = config.pattern.unit(row.shape) if row.chosen else 1
                lowest, highest = (unit * count for count in limits.get(row.name, (0, max_zeros(row.numel // unit))))
                cost, depth = self._cost(row) / row.numel, coarsest - groups.get(row.name, coarsest)
                self._parts.append(_Part(weight, row.chosen, row.numel, unit, lowest, highest, cost, depth))
        is_whole = config.scope == "all" and config.compensate
        takes_part = {part.weight.name for part in self._parts}
        self._total = sum(self._cost(row) for row in selection if is_whole or row.name in takes_part)
        if self._total == 0:
            raise UnreachableTargetError(
                "sparsity.budget: expected a forward pass that uses a weight which is pruned, got none. Correct "
                "input_shape or example_inputs, or use the budget 'weights'."
            )
        self._is_each_alone = (
            not config.compensate
            and isinstance(allocation, Uniform)
            and config.budget == "weights"
            and config.pattern.type == "unstructured"
        )
        self._check_reachable()

    @property
    def scored(self) -> tuple[Weight, ...]:
        """The weights whose scores count: those that are chosen, and where nothing is made up for the others too."""
        return tuple(part.weight for part in self._parts if part.is_chosen or self._allocation.needs_scores)

    def counts(
        self,
        targets: Sequence[float],
        scores: Callable[[Weight], NDArray[np.float32]],
        num_pruned: Mapping[str, int],
    ) -> list[list[int]]:
        """Return the number of zeros of each chosen weight, for each of several targets.

        Args:
            targets: shares of the weights, or of the MACs, that are to go.
            scores: returns the importance of a weight's entries, the same at every call: flat, float32, 0 where
                pruned already.
            num_pruned: how many entries of a weight are pruned already.

        Raises:
            UnreachableTargetError: more is pruned already.
        """
        tensors = [
            ScoredTensor(
                part.weight.name,
                tuple(part.weight.tensor.shape),
                partial(scores, part.weight) if self._allocation.needs_scores else None,
                num_pruned=num_pruned.get(part.weight.name, 0),
                lowest=part.lowest,
                highest=part.highest,
                cost=part.cost,
                depth=part.depth,
                with_energy=self._allocation.needs_energy,
            )
            for part in self._parts
        ]
        goals = [self._goal(target) for target in targets]
        rows = select_counts(self._allocation, tensors, goals)
        if any(part.unit > 1 for part in self._parts):
            rows = [self._whole_units(row, goal) for row, goal in zip(rows, goals, strict=True)]
        if self._is_each_alone:
            rows = [
                [min(max(rounded_up(target, tensor.summary.size), tensor.base), tensor.limit) for tensor in tensors]
                for target in targets
            ]
        return [[count for count, part in zip(row, self._parts, strict=True) if part.is_chosen] for row in rows]

    def _whole_units(self, counts: Sequence[int], goal: float) -> list[int]:
        """Round to whole blocks or channels; what is left out takes no part in it."""
        tensors = [
            Countable(count, part.unit, part.highest if part.is_chosen else count, part.cost)
            for count, part in zip(counts, self._parts, strict=True)
        ]
        return round_to_units(tensors, goal, self._total)

    def _cost(self, row: Selected) -> int:
        return row.numel if self._num_macs is None else self._num_macs[row.name]

    def _goal(self, target: float) -> float:
        """Return the cost that `target` asks for: a whole number of weights, or MACs."""
        return round(target * self._total) if self._num_macs is None else target * self._total

    def _limits(
        self, weights: Sequence[Weight], selection: Sequence[Selected], predictions: Collection[str] | None
    ) -> dict[str, tuple[int, int]]:
        """Return how many units of a weight go at least and at most, where that is limited."""
        sizes = {row.name: row.numel // self._config.pattern.unit(row.shape) for row in selection if row.chosen}
        found = match("sparsity.limits", list(self._config.limits), weights, predictions)
        limits = {}
        for selector, names in found.items():
            if not sizes.keys() & names:
                raise TargetMatchError(
                    f"sparsity.limits: expected patterns of weights that are pruned, got '{selector}', which matches "
                    f"only weights that are left out ({', '.join(sorted(names)[:3])}). Remove it."
                )
            for name in sizes.keys() & names:
                limits[name] = self._config.limits[selector].counts(name, sizes[name])
        return limits

    def _check_reachable(self) -> None:
        must = sum(part.lowest * part.cost for part in self._parts)
        may = sum(part.highest * part.cost for part in self._parts)
        granularity = max(part.cost for part in self._parts)
        unit = "" if self._num_macs is None else "of the multiply-accumulates "
        most = f"{MAX_PERCENT} % of each chosen weight{', or its limit' if self._config.limits else ''}"
        for target in self._config.schedule.target_sparsities:
            goal = self._goal(target or 0)
            if goal > may:
                raise UnreachableTargetError(
                    f"sparsity.schedule: expected at most {math.floor(may / self._total * 1e4) / 1e4:.4f} "
                    f"{unit}({most}; scope '{self._config.scope}'), got {target}. "
                    "Lower it, choose more weights, or set scope: chosen."
                )
            if goal < must and goal <= must - granularity:
                raise UnreachableTargetError(
                    f"sparsity.schedule: expected at least {math.ceil(must / self._total * 1e4) / 1e4:.4f} "
                    f"{unit}(which the limits make go), got {target}. Raise it, or lower the limits."
                )


def _has_scores(weight: Weight) -> bool:
    return weight.tensor.numel() > 0 and not weight.tensor.is_complex() and not weight.tensor.is_meta
