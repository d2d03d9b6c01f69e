"""Reorder the channels of a network so that N:M keeps more of its weights, and leave its function unchanged."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsedet.common.errors import ConfigError, TargetMatchError, did_you_mean
from sparsedet.sparsity.patterns import NM
from sparsedet.sparsity.permutation.flow import Flow, Ids
from sparsedet.sparsity.permutation.groups import Group, find_groups
from sparsedet.sparsity.permutation.rules import find_rule
from sparsedet.sparsity.permutation.search import kept_magnitude, search_permutation
from sparsedet.sparsity.profile import run_once
from sparsedet.sparsity.weights import Weight, find_weights, unwrap

_ROUNDING = 1000
"""Rounding errors that the outputs may have, in units of the precision of a number as large as the largest of them."""

_COARSEST = 0.1
"""The outputs may change by this share of the largest one where numbers have little precision."""


@dataclass(frozen=True)
class PermutedGroup:
    """Channels that share one permutation, such as all that a residual connection adds up.

    Attributes:
        weights: the weights that read them and whose kept magnitude was maximised.
        moved: all parameters and buffers with these channels.
        num_channels: how many there are.
        kept_before: sum of the magnitudes of these weights that N:M would have kept.
        kept_after: what it keeps now; not less.
    """

    weights: tuple[str, ...]
    moved: tuple[str, ...]
    num_channels: int
    kept_before: float
    kept_after: float


@dataclass(frozen=True)
class PermutationReport:
    """What was permuted.

    Attributes:
        groups: in the order of the model.
        left_alone: for every other conv or linear weight why the order of what it reads is as it was.
        max_output_difference: largest absolute difference between the outputs before and after: of rounding
            errors, about 1e-6 of `max_output` in float32.
        max_output: largest absolute value of the outputs.
    """

    groups: tuple[PermutedGroup, ...]
    left_alone: dict[str, str]
    max_output_difference: float
    max_output: float


@torch.no_grad()
def permute_channels(
    model: nn.Module,
    pattern: NM,
    example_inputs: tuple[Any, ...],
    run: Callable[..., object] | None = None,
    weights: Collection[str] | None = None,
) -> PermutationReport:
    """Reorder channels in place, so that the pattern keeps a larger sum of magnitudes and the outputs stay the same.

    Input channels of a layer can only be reordered together with the output channels of all layers that make
    them, and with all that reads them: residual sums, feature pyramids and heads shared by several levels make
    large groups with one permutation. The groups are found by watching one forward pass
    (`sparsedet.sparsity.permutation.flow`). Channels that are inputs or outputs of the network, or go through
    something that cannot be followed (convolutions in groups, reshapes that mix dimensions, attention), are left
    alone. After each group the outputs on the example inputs are compared; a group that changes them is put back.

    Permute the dense network, then prune it, then train: an optimizer, an average of the weights and masks do not
    follow. Every process of a distributed run must permute the same weights on the same kind of device, or load
    what one of them has permuted.

    Args:
        model: any module; in float32 or float64 the comparison is close, in half precision it is coarse.
        pattern: N, M, and which layers are served.
        example_inputs: positional arguments of the model's forward; small ones do.
        run: called with them in the place of the forward, for models whose forward leaves layers out, or selects
            boxes at its end, which rounding errors can change.
        weights: full names of the weights that are to be pruned; default all that the pattern serves.

    Raises:
        ConfigError: the forward pass fails on these inputs, returns no tensor, or leaves layers out.
        TargetMatchError: a name is of no conv or linear weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> report = permute_channels(model, NM(), (torch.randn(2, 3),))
        >>> report.groups[0].moved, report.groups[0].kept_after > report.groups[0].kept_before
        (('0.weight', '0.bias', '2.weight'), True)
        >>> report.left_alone
        {'0.weight': '2:4 needs in_channels/groups % 4 == 0, got 3'}
    """
    found = {weight.name: weight for weight in find_weights(model)}
    left_alone = _unserved(found, pattern, weights)
    served = [name for name in found if name not in left_alone]
    tensors = _named_tensors(unwrap(model), found)
    flow = Flow(tensors, find_rule)
    _watch(flow, model, example_inputs, run)
    _check_seen(flow, found)
    classes, pinned, parts = flow.classes()
    sites = {site: classes[ids] for site, ids in flow.sites.items()}
    expected = _outputs(model, example_inputs, run)
    largest = _check_telling(expected)
    tolerance = largest * max(map(_precision, (*expected, *tensors.values())))

    groups, difference = [], 0.0
    for group in find_groups(sites, pinned, parts):
        readers = _Readers.of(group, served, pattern.m)
        if readers is None:
            continue
        permuted, order = readers.search(tensors, pattern)
        _move_(group, tensors, order)
        changed = _difference(expected, _outputs(model, example_inputs, run))
        if changed <= tolerance:
            groups.append(permuted)
            difference = changed
        else:
            _move_(group, tensors, np.argsort(order))
            reason = f"moving what it reads changed the outputs by {changed:.2g}, so it was put back"
            left_alone |= dict.fromkeys(permuted.weights, reason)
    done = {name for group in groups for name in group.weights}
    for name in served:
        if name not in done and name not in left_alone:
            reasons = [f"what it reads {pinned[item]}" for item in sites[name, 1].tolist() if item in pinned]
            left_alone[name] = [*reasons, f"what it reads does not fill whole groups of {pattern.m} channels"][0]
    in_order = {name: left_alone[name] for name in found if name in left_alone and name not in done}
    return PermutationReport(tuple(groups), in_order, difference, largest)


@dataclass(frozen=True)
class _Readers:
    """The weights whose kept magnitude counts for a group.

    Attributes:
        group: the channels.
        rows: names, each with the input channels of the weight in the order of its stripes.
        reference: the group's channels in that order.
    """

    group: Group
    rows: tuple[tuple[str, Ids], ...]
    reference: Ids

    @classmethod
    def of(cls, group: Group, served: Sequence[str], m: int) -> "_Readers | None":
        """Return those of the weights `served` in which the group fills stripes, the same ones in all of them."""
        rows, reference = [], None
        if group.num_channels % m:
            return None
        for name in served:
            for positions in group.positions.get((name, 1), ()):
                order = np.argsort(positions) if reference is None else reference
                stripes = positions[order].reshape(-1, m)
                if not (stripes[:, 0] % m).any() and (np.diff(stripes) == 1).all():
                    rows.append((name, positions[order]))
                    reference = order
        return None if reference is None else cls(group, tuple(rows), reference)

    def search(self, tensors: Mapping[str, Tensor], pattern: NM) -> tuple[PermutedGroup, Ids]:
        """Return what a search for a good order finds, and the order itself: which channel goes in each one's place."""
        magnitudes = torch.cat(
            [
                tensors[name].abs()[:, torch.from_numpy(row)].movedim(1, -1).reshape(-1, len(row)).float()
                for name, row in self.rows
            ]
        )
        permutation = search_permutation(magnitudes, pattern.n, pattern.m)
        order = np.empty_like(self.reference)
        order[self.reference] = self.reference[permutation.cpu().numpy()]
        permuted = PermutedGroup(
            weights=tuple(dict.fromkeys(name for name, _ in self.rows)),
            moved=tuple(dict.fromkeys(name for name, _ in self.group.positions)),
            num_channels=self.group.num_channels,
            kept_before=kept_magnitude(magnitudes, pattern.n, pattern.m),
            kept_after=kept_magnitude(magnitudes[:, permutation], pattern.n, pattern.m),
        )
        return permuted, order


def _move_(group: Group, tensors: Mapping[str, Tensor], order: Ids) -> None:
    """Put channel ``order[i]`` of the group in the place of channel i, wherever it is."""
    for (name, dim), positions in group.positions.items():
        tensor = tensors[name]
        index = np.arange(tensor.shape[dim])
        index[positions] = positions[:, order]
        tensor.copy_(tensor.index_select(dim, torch.from_numpy(index).to(tensor.device)))


def _unserved(found: Mapping[str, Weight], pattern: NM, weights: Collection[str] | None) -> dict[str, str]:
    """Return why weights need not keep more."""
    unknown = [name for name in weights or () if name not in found]
    if unknown:
        raise TargetMatchError(
            f"weights: expected full names of conv or linear weights, got '{unknown[0]}'."
            f"{did_you_mean(unknown[0], found)} Correct or remove it."
        )
    reasons = {}
    for name, weight in found.items():
        if weights is not None and name not in weights:
            reasons[name] = "not among the weights to prune"
        elif not weight.is_parameter:
            reasons[name] = "not a plain parameter (computed by a parametrization)"
        elif (rule := pattern.unserved(weight.layer)) is not None:
            reasons[name] = rule
    return reasons


def _named_tensors(model: nn.Module, found: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; of several that are the same memory the first.

    The others are not followed, so that what they meet is left alone.
    """
    names = {id(weight.tensor): name for name, weight in found.items()}
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        named.setdefault(tensor.data_ptr() or id(tensor), (names.get(id(tensor), name), tensor))
    return dict(named.values())


def _precision(tensor: Tensor) -> float:
    """Return the share of the largest output by which rounding may change the outputs."""
    if not tensor.is_floating_point():
        return 0.0
    has_tf32 = tensor.is_cuda and tensor.dtype == torch.float32  # in convolutions, by default
    return min(_COARSEST, _ROUNDING * torch.finfo(torch.float16 if has_tf32 else tensor.dtype).eps)


def _watch(flow: Flow, model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None) -> None:
    for value in tree_leaves(example_inputs):
        if isinstance(value, Tensor):
            flow.put_pinned(value, "is an input of the network")

    def watched(*inputs: Any) -> None:
        with flow:
            result = (run or unwrap(model))(*inputs)
        flow.pin((ids for output in _tensors(result) for ids in flow.of(output)), "is an output of the network")

    run_once(model, example_inputs, watched)


def _check_seen(flow: Flow, found: Mapping[str, Weight]) -> None:
    """A layer that did not run may read channels too, and would read them in the old order."""
    unseen = [
        name for name, weight in found.items() if weight.is_parameter and not flow.seen.intersection(weight.names)
    ]
    if unseen:
        raise ConfigError(
            f"example_inputs: expected a forward pass that runs every conv and linear layer, got one without "
            f"{', '.join(unseen[:3])}{' …' if len(unseen) > 3 else ''}. Pass run=… that runs them too, or remove "
            "layers that are never used."
        )


def _outputs(model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None) -> list[Tensor]:
    results: list[object] = []
    run_once(model, example_inputs, lambda *inputs: results.append((run or unwrap(model))(*inputs)))
    return [tensor for tensor in _tensors(results) if tensor.is_floating_point()]


def _check_telling(outputs: list[Tensor]) -> float:
    """Return the largest absolute output; without one the comparison of outputs says nothing."""
    largest = max((float(output.abs().max()) for output in outputs if output.numel()), default=0.0)
    if not 0 < largest < math.inf:
        raise ConfigError(
            "example_inputs: expected a forward pass that returns finite floating-point values, not all of them 0, got "
            f"{sum(output.numel() for output in outputs)} values, the largest {largest:g}. Pass other inputs, or "
            "run=… that returns what the layers give, before boxes are selected."
        )
    return largest


def _difference(expected: list[Tensor], outputs: list[Tensor]) -> float:
    """Return the largest absolute difference; infinite if there are other numbers of values."""
    if [output.shape for output in expected] != [output.shape for output in outputs]:
        return math.inf
    pairs = [(ours, theirs) for ours, theirs in zip(expected, outputs, strict=True) if ours.numel()]
    both_nan = [(ours != ours) & (theirs != theirs) for ours, theirs in pairs]
    return max(
        float(torch.where((ours == theirs) | is_nan, 0, (ours - theirs).abs()).nan_to_num(math.inf).max())
        for (ours, theirs), is_nan in zip(pairs, both_nan, strict=True)
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model returns: containers, data classes and plain objects of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from _tensors(list(vars(value).values()))
