"""What operations do with channels. One rule serves many operations; operations without a rule pin what they read.

Names are those of PyTorch's ATen operators, which the Python functions and layers end up in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedet.sparsity.permutation.flow import Flow, Ids, Labels, Rule

Arguments = Mapping[str, Any]

_RESHAPED = "is reshaped together with other dimensions"

_SPATIAL = re.compile(
    r"_?(?:adaptive_(?:avg|max)_pool|avg_pool|max_pool|upsample_\w+|reflection_pad|replication_pad)(\d)d"
)


def find_rule(operation: Any) -> Rule | None:
    """Return the rule for an ATen operation; None: there is none."""
    namespace, _, name = operation._schema.name.partition("::")
    if namespace != "aten":
        return None
    if name in _RULES:
        return _RULES[name]
    if name.removesuffix("_") in _IN_PLACE:
        return _RULES[name.removesuffix("_")]
    if _SPATIAL.match(name):
        return _spatial
    is_pointwise = torch.Tag.pointwise in operation.tags and len(operation._schema.returns) == 1
    return _pointwise if is_pointwise else None


def _pointwise(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Value by value, with broadcasting; also what keeps channels apart and in order, such as softmax."""
    inputs = [value for value in arguments.values() if isinstance(value, Tensor)]
    labels: Labels = []
    for dim in range(-output.ndim, 0):
        size = output.shape[dim]
        meeting = [tensor for tensor in inputs if tensor.ndim >= -dim and tensor.shape[dim] == size]
        labels.append(flow.tie([flow.of(tensor)[dim] for tensor in meeting]) if size > 1 else None)
    flow.put(output, labels)


def _ignore(flow: Flow, arguments: Arguments, output: Any) -> None:
    """The same value everywhere: what is written over keeps its channels, what is new has none."""


def _convolution(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Input (N, C, *spatial), weight (O, C/groups, *kernel) or, transposed, (C, O/groups, *kernel)."""
    inputs, weight, bias = (arguments[key] for key in ("input", "weight", "bias"))
    batch, channels, *spatial = flow.of(inputs)
    ours, theirs, *kernel = flow.of(weight)
    flow.pin([*spatial, *kernel])
    num_groups = arguments["groups"]
    if num_groups == 1:
        reads, makes = (ours, theirs) if arguments["transposed"] else (theirs, ours)
        flow.tie([channels, reads])
    elif num_groups == inputs.shape[1] == output.shape[1]:
        makes = flow.tie([channels, ours])
    else:
        reason = "goes through a convolution in groups"
        flow.pin([channels, ours, theirs], reason)
        makes = flow.new_pinned(output.shape[1], reason)
    if bias is not None:
        makes = flow.tie([makes, *flow.of(bias)])
    flow.put(output, [batch, makes, *([None] * len(spatial))])


def _matrix_product(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """(…, I, K) times (…, K, O), plus something of the shape of the product if there is a third tensor."""
    *others, left, right = (value for value in arguments.values() if isinstance(value, Tensor))
    *batch, rows, inner = flow.of(left)
    *other_batch, other_inner, columns = flow.of(right)
    if left.shape[-1] > 1:
        flow.tie([inner, other_inner])
    labels = [flow.tie(pair) for pair in zip(batch, other_batch, strict=True)]
    flow.put(output, [*labels, rows, columns])
    if others:
        _pointwise(flow, {"product": output, "added": others[0]}, output)


def _batch_norm(flow: Flow, arguments: Arguments, output: Sequence[Tensor]) -> None:
    """Channel by channel (dimension 1), with up to four vectors."""
    labels = list(flow.of(arguments["input"]))
    size = arguments["input"].shape[1]
    vectors = [v for v in arguments.values() if isinstance(v, Tensor) and tuple(v.shape) == (size,)]
    if size > 1:
        labels[1] = flow.tie([labels[1], *(flow.of(vector)[0] for vector in vectors)])
    flow.put(output[0], labels)
    for statistic in output[1:]:
        flow.put(statistic, [labels[1] if tuple(statistic.shape) == (size,) else None] * statistic.ndim)


def _layer_norm(flow: Flow, arguments: Arguments, output: Sequence[Tensor]) -> None:
    """Over the last dimensions, whose order does not matter to mean and variance."""
    labels = list(flow.of(arguments["input"]))
    for key in ("weight", "bias"):
        if arguments[key] is not None:
            for dim in range(-arguments[key].ndim, 0):
                labels[dim] = flow.tie([labels[dim], flow.of(arguments[key])[dim]])
    flow.put(output[0], labels)
    for statistic in output[1:]:
        flow.put(statistic, [ids if size > 1 else None for ids, size in zip(labels, statistic.shape, strict=True)])


def _group_norm(flow: Flow, arguments: Arguments, output: Sequence[Tensor]) -> None:
    """With one group for all channels their order does not matter; otherwise it does."""
    labels = list(flow.of(arguments["input"]))
    vectors = [flow.of(arguments[key])[0] for key in ("weight", "bias") if arguments[key] is not None]
    if arguments["group"] == 1:
        labels[1] = flow.tie([labels[1], *vectors])
    else:
        flow.pin([labels[1], *vectors], "is normalised in groups of channels")
    flow.put(output[0], labels)


def _spatial(flow: Flow, arguments: Arguments, output: Any) -> None:
    """Pooling, resizing and mirrored padding of the last dimensions, as many as the name says."""
    inputs = next(value for value in arguments.values() if isinstance(value, Tensor))
    match = _SPATIAL.match(flow.operation.removeprefix("aten::"))
    assert match
    num_dims = int(match[1])
    labels = flow.of(inputs)
    flow.pin(labels[-num_dims:])
    for tensor in output if isinstance(output, tuple) else (output,):
        flow.put(tensor, [*labels[:-num_dims], *([None] * num_dims)])


def _pad(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Amounts before and after, from the last dimension on."""
    labels = list(flow.of(arguments["self"]))
    amounts = arguments["pad"]
    for index in range(len(amounts) // 2):
        if any(amounts[2 * index : 2 * index + 2]):
            flow.pin([labels[-1 - index]])
            labels[-1 - index] = None
    flow.put(output, labels)


def _reduction(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Over dimensions whose order does not matter, such as a mean."""
    inputs = arguments["self"]
    dims = arguments.get("dim") or range(inputs.ndim)
    gone = {dim % inputs.ndim for dim in dims}
    labels = flow.of(inputs)
    if arguments.get("keepdim"):
        flow.put(output, [None if dim in gone else ids for dim, ids in enumerate(labels)])
    else:
        flow.put(output, [ids for dim, ids in enumerate(labels) if dim not in gone])


def _reorder(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Permute, transpose, t."""
    labels = flow.of(arguments["self"])
    order = list(range(len(labels)))
    if "dims" in arguments:
        order = list(arguments["dims"])
    elif "dim0" in arguments:
        one, other = arguments["dim0"], arguments["dim1"]
        order[one], order[other] = order[other], order[one]
    else:
        order.reverse()
    flow.put(output, [labels[dim] for dim in order])


def _view(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Dimensions that stay what they are keep their channels; those merged with others, or split, are pinned."""
    inputs = arguments["self"]
    labels = flow.of(inputs)
    new: Labels = [None] * output.ndim
    for before, after in _factors(inputs.shape, output.shape):
        if len(before) == len(after) == 1:
            new[after[0]] = labels[before[0]]
            continue
        flow.pin([labels[dim] for dim in before], _RESHAPED)
        for dim in after:
            new[dim] = flow.new_pinned(output.shape[dim], _RESHAPED)
    flow.put(output, new)


def _factors(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which dimensions of size > 1 of a view come from which, in the smallest possible sets."""
    ours = [dim for dim, size in enumerate(before) if size != 1]
    theirs = [dim for dim, size in enumerate(after) if size != 1]
    if math.prod(before) != math.prod(after) or 0 in before:
        return [(ours, theirs)]
    found = []
    while ours:
        one, other = [ours.pop(0)], [theirs.pop(0)]
        while (difference := math.prod(before[d] for d in one) - math.prod(after[d] for d in other)) != 0:
            if difference < 0:
                one.append(ours.pop(0))
            else:
                other.append(theirs.pop(0))
        found.append((one, other))
    return found


def _expand(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    inputs = arguments["self"]
    flow.put(output, [*([None] * (output.ndim - inputs.ndim)), *flow.of(inputs)])


def _as_strided(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Followed where it changes nothing but the strides of dimensions of size 1, as pooling to one pixel does."""
    sizes = arguments["size"]
    inputs = arguments["self"]
    strides = zip(sizes, flow.before, arguments["stride"], strict=False)
    is_same = list(sizes) == list(inputs.shape) and all(size == 1 or old == new for size, old, new in strides)
    if is_same and not arguments["storage_offset"]:
        flow.put(output, list(flow.of(inputs)))
    else:
        flow.pin(flow.of(inputs))


def _slice(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    dim = arguments["dim"] % arguments["self"].ndim
    labels = list(flow.of(arguments["self"]))
    ids = labels[dim]
    if ids is not None:
        labels[dim] = _cut(flow, ids, ids[slice(arguments["start"], arguments["end"], arguments["step"])])
    flow.put(output, labels)


def _cut(flow: Flow, whole: Ids, part: Ids) -> Ids | None:
    if len(part) < len(whole):
        flow.part(part)
    return part if len(part) > 1 else None


def _split(flow: Flow, arguments: Arguments, output: Sequence[Tensor]) -> None:
    dim = arguments["dim"] % arguments["self"].ndim
    labels = flow.of(arguments["self"])
    start = 0
    for tensor in output:
        new, ids = list(labels), labels[dim]
        end = start + tensor.shape[dim]
        if ids is not None:
            new[dim] = _cut(flow, ids, ids[start:end])
        flow.put(tensor, new)
        start = end


def _pick(flow: Flow, arguments: Arguments, output: Tensor | Sequence[Tensor]) -> None:
    """Select, unbind: the dimension that goes is pinned."""
    dim = arguments["dim"] % arguments["self"].ndim
    labels = flow.of(arguments["self"])
    flow.pin([labels[dim]])
    for tensor in [output] if isinstance(output, Tensor) else output:
        flow.put(tensor, [*labels[:dim], *labels[dim + 1 :]])


def _cat(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    """Rows of numbers are joined; what is not followed gets numbers of its own, which are pinned."""
    tensors = [tensor for tensor in arguments["tensors"] if tensor.shape != (0,)]
    dim = arguments["dim"] % output.ndim
    labels: Labels = [
        flow.tie([flow.of(tensor)[other] for tensor in tensors]) if other != dim and output.shape[other] > 1 else None
        for other in range(output.ndim)
    ]
    joined = [flow.of(tensor)[dim] for tensor in tensors]
    if any(ids is not None for ids in joined):
        whole = []
        for tensor, ids in zip(tensors, joined, strict=True):
            if ids is None:
                ids = flow.new(tensor.shape[dim])
                flow.pin([ids], f"is joined in {flow.operation} with values that are not followed")
            whole.append(ids)
        labels[dim] = np.concatenate(whole)
    flow.put(output, labels)


def _stack(flow: Flow, arguments: Arguments, output: Tensor) -> None:
    dim = arguments["dim"] % output.ndim
    labels = [flow.tie(list(meeting)) for meeting in zip(*(flow.of(t) for t in arguments["tensors"]), strict=True)]
    flow.put(output, [*labels[:dim], None, *labels[dim:]])


_IN_PLACE: dict[str, Rule] = {
    **dict.fromkeys(("hardswish", "copy", "masked_fill"), _pointwise),
    **dict.fromkeys(("fill", "zero"), _ignore),
}
"""Name -> rule, which the in-place form (with a ``_`` at the end) has too."""

_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "constant_pad_nd": _pad,
    "expand": _expand,
    "as_strided_": _as_strided,
    "slice": _slice,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
         "miopen_batch_norm", "_batch_norm_no_update"),
        _batch_norm,
    ),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix_product),
    **dict.fromkeys(("permute", "transpose", "t"), _reorder),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze"), _view),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("select", "unbind"), _pick),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(
        ("_to_copy", "detach", "alias", "lift_fresh", "_softmax", "_log_softmax", "where", "_prelu_kernel"), _pointwise
    ),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
         "new_full", "new_empty"),
        _ignore,
    ),
    **_IN_PLACE,
}  # fmt: skip
"""Name -> rule."""
