"""Reorder the channels of a network so that N:M keeps more of its weights, and leave its function unchanged."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparsedet.common.errors import ConfigError, TargetMatchError, did_you_mean
from sparsedet.sparsity.followers import named_tensors
from sparsedet.sparsity.patterns import NM
from sparsedet.sparsity.permutation.flow import Flow, Ids
from sparsedet.sparsity.permutation.groups import Group, find_groups
from sparsedet.sparsity.permutation.outputs import Outputs, tensors_in
from sparsedet.sparsity.permutation.rules import find_rule
from sparsedet.sparsity.permutation.search import kept_magnitude, search_permutation
from sparsedet.sparsity.profile import run_once
from sparsedet.sparsity.weights import Weight, find_weights, unwrap

_PARTS = "what it reads does not fill whole groups of {} channels"


@dataclass(frozen=True)
class PermutedGroup:
    """Channels that share one permutation, such as all that a residual connection adds up.

    Attributes:
        weights: the weights to be pruned that read them; one that reads several groups counts in each.
        moved: all parameters and buffers with these channels.
        num_channels: how many there are.
        kept_before: sum of the magnitudes of these weights that N:M would have kept.
        kept_after: what it keeps now; more.
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

    @property
    def summary(self) -> str:
        """One line for a log."""
        before, after = (sum(getattr(group, key) for group in self.groups) for key in ("kept_before", "kept_after"))
        gain = f", which keep {after / before - 1:.2%} more" if self.groups else ""
        return (
            f"{len(self.groups)} groups of channels permuted{gain}; {len(self.left_alone)} weights left alone; "
            f"outputs differ by at most {self.max_output_difference:.1e}, the largest is {self.max_output:.3g}"
        )


@dataclass(frozen=True)
class _Move:
    """A permutation that was found: in the place of channel i of `group` comes channel ``order[i]``."""

    group: Group
    order: Ids
    report: PermutedGroup


@torch.no_grad()
def permute_channels(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    pattern: NM,
    run: Callable[..., object] | None = None,
    weights: Collection[str] | None = None,
) -> PermutationReport:
    """Reorder channels in place, so that the pattern keeps a larger sum of magnitudes and the outputs stay the same.

    Input channels of a layer can only be reordered together with the output channels of all layers that make
    them, and with all that reads them: residual sums, feature pyramids and heads shared by several levels make
    large groups with one permutation. The groups are found by watching one forward pass
    (`sparsedet.sparsity.permutation.flow`). Left alone, with the reason, are channels that are inputs or outputs of
    the network, that go through something that cannot be followed (convolutions in groups, group norms,
    reshapes that mix dimensions, unknown operations), or that are there when Python looks at a value of the network
    and may choose another way next time. At the end the outputs are compared; groups that change them are put back.

    Permute the dense network, then prune it, then train: the state of an optimizer, an average of the weights and
    masks do not follow. Every process of a distributed run that permutes the same weights on the same kind of device
    gets the same order.

    Args:
        model: any module; in float32 or float64 the comparison is close, in half precision it is coarse.
        example_inputs: positional arguments of the model's forward; small ones do. Noise stands in for zeros.
        pattern: N, M, and which layers are served.
        run: called with them in the place of the forward, for models whose forward leaves layers out, or selects
            boxes at its end, which rounding errors can change.
        weights: full names of the weights that are to be pruned; default all that the pattern serves.

    Raises:
        ConfigError: the forward pass fails on these inputs or returns nothing to compare; the model is sharded.
        TargetMatchError: a name is of no conv or linear weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> report = permute_channels(model, (torch.randn(2, 3),), NM())
        >>> report.groups[0].moved, report.groups[0].kept_after > report.groups[0].kept_before
        (('0.weight', '0.bias', '2.weight'), True)
        >>> report.left_alone
        {'0.weight': '2:4 needs in_channels/groups % 4 == 0, got 3'}
    """
    found = {weight.name: weight for weight in find_weights(model)}
    unserved = _unserved(found, pattern, weights)
    served = [name for name in found if name not in unserved]
    tensors = _tensors(model, found)
    outputs = Outputs(model, example_inputs, run)
    flow = _watch(model, tensors, outputs.inputs, run)
    classes, pinned, parts = flow.classes()
    sites = {site: classes[ids] for site, ids in flow.sites.items()}
    parameters = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and tensor.numel() > 1]
    not_run = [name for name in parameters if name not in flow.seen]
    groups = [] if not_run else find_groups(sites, pinned, parts)

    moves, reasons = [], dict[str, str]()
    for group in groups:
        names = [name for name in served if (name, 1) in group.positions]
        move = _search(group, names, tensors, pattern)
        if isinstance(move, _Move):
            moves.append(move)
        else:
            reasons |= dict.fromkeys(names, move)
    accepted, put_back = _apply(moves, tensors, outputs)
    reasons |= put_back
    for name in served:
        if not_run:
            reasons[name] = f"'{not_run[0]}' does not run on these inputs and may read it too; run=… can run all layers"
        else:
            pins = [f"what it reads {pinned[item]}" for item in sites[name, 1].tolist() if item in pinned]
            reasons.setdefault(name, [*pins, _PARTS.format(pattern.m)][0])
    permuted = {name for move in accepted for name in move.report.weights}
    left_alone = {name: (unserved | reasons)[name] for name in found if name not in permuted}
    return PermutationReport(
        tuple(move.report for move in accepted), left_alone, outputs.difference()[0], outputs.largest
    )


def check_fresh(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Check that no optimizer has state, which would not follow a permutation.

    Raises:
        ConfigError: one has.
    """
    for optimizer in optimizers:
        if any(isinstance(value, Tensor) for state in optimizer.state.values() for value in state.values()):
            raise ConfigError(
                "pattern.permute: expected an optimizer that has made no step before channels are permuted, got "
                f"{type(optimizer).__name__} with state. Prune at step 0, or call permute_() before training."
            )


def _search(group: Group, names: Sequence[str], tensors: Mapping[str, Tensor], pattern: NM) -> _Move | str:
    """Search for an order in which the weights `names` that read the group keep more, or say why there is none."""
    n, m = pattern.n, pattern.m
    if group.num_channels % m:
        return _PARTS.format(m)
    reference: Ids | None = None  # the channels in an order in which m at a time are a stripe of the weights
    rows = []
    for name in names:
        for positions in group.positions[name, 1]:
            order = np.argsort(positions) if reference is None else reference
            stripe = positions[order].reshape(-1, m)
            if not (stripe[:, 0] % m).any() and (np.diff(stripe) == 1).all():
                rows.append(_rows(tensors[name])[:, torch.from_numpy(positions[order])])
                reference = order
    if reference is None:
        return _PARTS.format(m)
    permutation = search_permutation(torch.cat(rows), n, m)
    order = np.empty_like(reference)
    order[reference] = reference[permutation.cpu().numpy()]
    before = after = 0.0
    for name in names:
        magnitudes = _rows(tensors[name])
        before += kept_magnitude(magnitudes, n, m)
        index = torch.from_numpy(_index(group, (name, 1), order, magnitudes.shape[1]))
        after += kept_magnitude(magnitudes[:, index], n, m)
    if after <= before:
        return "no order was found in which more is kept"
    moved = dict.fromkeys(name for name, _ in group.positions)
    return _Move(group, order, PermutedGroup(tuple(names), tuple(moved), group.num_channels, before, after))


def _apply(
    moves: Sequence[_Move], tensors: Mapping[str, Tensor], outputs: Outputs
) -> tuple[list[_Move], dict[str, str]]:
    """Make the moves and put back those that change the outputs: half of them by half, until they are found.

    Returns:
        The moves that stay, and why the weights of the others were left alone.
    """
    if not moves:
        return [], {}
    saved = {name: tensors[name].clone() for move in moves for name in move.report.moved}
    for move in moves:
        for site in move.group.positions:
            _move_(tensors[site[0]], move, site)
    difference, is_rounding = outputs.difference()
    if is_rounding:
        return list(moves), {}
    for name, value in saved.items():
        tensors[name].copy_(value)
    if len(moves) == 1:
        reason = f"moving what it reads changed the outputs by {difference:.2g}, so it was put back"
        return [], dict.fromkeys(moves[0].report.weights, reason)
    middle = len(moves) // 2
    first, first_reasons = _apply(moves[:middle], tensors, outputs)
    second, second_reasons = _apply(moves[middle:], tensors, outputs)
    return first + second, first_reasons | second_reasons


def _move_(tensor: Tensor, move: _Move, site: tuple[str, int]) -> None:
    index = torch.from_numpy(_index(move.group, site, move.order, tensor.shape[site[1]])).to(tensor.device)
    tensor.copy_(tensor.index_select(site[1], index))


def _index(group: Group, site: tuple[str, int], order: Ids, size: int) -> Ids:
    """Return which position of a dimension of `size` goes where."""
    index = np.arange(size)
    index[group.positions[site]] = group.positions[site][:, order]
    return index


def _rows(weight: Tensor) -> Tensor:
    """Return the magnitudes of a weight (O, I, *kernel) as (rows, I)."""
    return weight.detach().abs().movedim(1, -1).reshape(-1, weight.shape[1]).float()


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
        if not weight.is_parameter:
            reasons[name] = "no parameter of the layer (a buffer, or computed by a parametrization or hook)"
        elif weight.others:
            reasons[name] = f"shared with {', '.join(weight.others)}"
        elif (rule := pattern.unserved_by(weight)) is not None:
            reasons[name] = rule
        elif weights is not None and name not in weights:
            reasons[name] = "not among the weights to prune"
    return reasons


def _tensors(model: nn.Module, found: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; of several that are the same memory the first.

    The others are not followed, so that what they meet is left alone.
    """
    names = {id(weight.tensor): name for name, weight in found.items()}
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named_tensors(model).items():
        if is_traceable_wrapper_subclass(tensor):
            raise ConfigError(
                f"model: expected plain tensors, got '{name}' of class {type(tensor).__name__}. "
                "Permute the model before it is sharded."
            )
        named.setdefault(tensor.data_ptr() or id(tensor), (names.get(id(tensor), name), tensor))
    return dict(named.values())


def _watch(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], run: Callable[..., object] | None
) -> Flow:
    flow = Flow(tensors, find_rule)
    flow.enter(tensors_in(inputs))

    def watched(*inputs: Any) -> None:
        with flow:
            result = (run or unwrap(model))(*inputs)
        flow.leave(tensors_in(result))

    is_fast = torch.backends.mha.get_fastpath_enabled()  # a whole transformer layer as one operation
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        run_once(model, inputs, watched)
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
    return flow
