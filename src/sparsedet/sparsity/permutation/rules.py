"""What operations do with channels. One rule serves many operations.

Names are those of PyTorch's ATen operators, which the Python functions and layers end up in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedet.sparsity.permutation.flow import Flow, Labels, Rule

Arguments = Mapping[str, Any]
Outputs = Sequence[Tensor]

_RESHAPED = "is reshaped together with other dimensions"

_SPATIAL = re.compile(
    r"_?(?:adaptive_(?:avg|max)_pool|avg_pool|max_pool|upsample_\w+|reflection_pad|replication_pad)(\d)d"
)


def find_rule(operation: Any) -> Rule | None:
    """Return the rule for an operator; None: there is none."""
    namespace, _, name = operation._schema.name.partition("::")
    if (namespace, name) == ("torchvision", "roi_align"):
        return _roi_align
    if namespace != "aten":
        return None
    rule = _RULES.get(name.removesuffix("_"))
    keeps_shape = rule in (_pointwise, _as_it_was, _as_strided)
    if rule is not None and (keeps_shape or not name.endswith("_")):  # others may change it in place
        return rule
    if match := _SPATIAL.match(name):
        return _SPATIAL_RULES[int(match[1])]
    return _pointwise if torch.Tag.pointwise in operation.tags else None


def _pointwise(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """Value by value, with broadcasting; also what does so in any order of channels, such as softmax and layer norm."""
    if not outputs:
        return "a comparison as a whole"
    inputs = [value for value in arguments.values() if isinstance(value, Tensor)]
    return [_broadcast(flow, [(flow.of(tensor), tensor.shape) for tensor in inputs], outputs[0].shape)]


def _broadcast(flow: Flow, inputs: Sequence[tuple[Labels, Sequence[int]]], shape: Sequence[int]) -> Labels:
    """Tie the labels of tensors that are added up, say, to one of `shape`."""
    labels: Labels = []
    for dim, size in zip(range(-len(shape), 0), shape, strict=True):
        meeting = [its_labels[dim] for its_labels, sizes in inputs if len(sizes) >= -dim and sizes[dim] == size]
        labels.append(flow.tie(meeting) if size > 1 else None)
    return labels


def _as_it_was(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """The same value everywhere: what is written over keeps its channels, what is new has none."""
    return [flow.of(outputs[0])]


def _convolution(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """Input (N, C, *spatial), weight (O, C/groups, *kernel) or, transposed, (C, O/groups, *kernel)."""
    inputs, weight, bias = (arguments[key] for key in ("input", "weight", "bias"))
    batch, channels, *spatial = flow.of(inputs)
    ours, theirs, *kernel = flow.of(weight)
    if arguments["groups"] == 1:
        reads, makes = (ours, theirs) if arguments["transposed"] else (theirs, ours)
        flow.tie([channels, reads])
    elif arguments["groups"] == inputs.shape[1] == outputs[0].shape[1]:
        makes = flow.tie([channels, ours])
    else:
        return "a convolution in groups"
    flow.pin([*spatial, *kernel])
    if bias is not None:
        makes = flow.tie([makes, *flow.of(bias)])
    return [[batch, makes, *([None] * len(spatial))]]


def _matrix_product(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """(…, I, K) times (…, K, O), plus something of the shape of the product if there is a third tensor."""
    *added, left, right = (value for value in arguments.values() if isinstance(value, Tensor))
    *batch, rows, inner = flow.of(left)
    *other_batch, other_inner, columns = flow.of(right)
    if left.shape[-1] > 1:
        flow.tie([inner, other_inner])
    product = [*(flow.tie(pair) for pair in zip(batch, other_batch, strict=True)), rows, columns]
    shape = outputs[0].shape
    return [_broadcast(flow, [(product, shape), *((flow.of(tensor), tensor.shape) for tensor in added)], shape)]


def _batch_norm(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """Channel by channel (dimension 1), with up to four vectors."""
    labels = list(flow.of(arguments["input"]))
    size = arguments["input"].shape[1:2]
    vectors = [value for value in arguments.values() if isinstance(value, Tensor) and value.shape == size]
    if size[0] > 1:
        labels[1] = flow.tie([labels[1], *(flow.of(vector)[0] for vector in vectors)])
    return [labels]


def _spatial(num_dims: int) -> Rule:
    """Pooling, resizing and mirrored padding of the last dimensions."""

    def rule(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
        labels = flow.of(next(value for value in arguments.values() if isinstance(value, Tensor)))
        flow.pin(labels[-num_dims:])
        return [[*labels[:-num_dims], *([None] * num_dims)] for _ in outputs]

    return rule


def _roi_align(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """Regions (R, 5) of maps (N, C, H, W): (R, C, S, S)."""
    batch, channels, *spatial = flow.of(arguments["input"])
    flow.pin([batch, *spatial, *flow.of(arguments["rois"])])
    return [[None, channels, None, None]]


def _pad(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    labels = list(flow.of(arguments["self"]))
    for index, amount in enumerate(arguments["pad"]):
        if amount:
            dim = -1 - index // 2
            flow.pin([labels[dim]])
            labels[dim] = None
    return [labels]


def _reduction(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """Over dimensions whose order does not matter, such as a mean."""
    labels = flow.of(arguments["self"])
    dims = arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(len(labels))
    gone = {dim % len(labels) for dim in dims if labels}
    if arguments.get("keepdim"):
        return [[None if dim in gone else ids for dim, ids in enumerate(labels)]]
    return [[ids for dim, ids in enumerate(labels) if dim not in gone]]


def _reorder(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
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
    return [[labels[dim] for dim in order]]


def _view(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """Dimensions that stay what they are keep their channels; those that are merged or split may be pinned.

    A map that is flattened has each of its channels as often as it has pixels.
    """
    shape, new_shape = arguments["self"].shape, outputs[0].shape
    if math.prod(shape) != math.prod(new_shape):
        return "a view as another type"
    labels = flow.of(arguments["self"])
    new: Labels = [None] * len(new_shape)
    for before, after in _factors(shape, new_shape):
        followed = [dim for dim in before if labels[dim] is not None]
        if not followed:
            continue
        if len(followed) == len(after) == 1:
            ids = labels[followed[0]]
            assert ids is not None
            along = [shape[dim] if dim in followed else 1 for dim in before]
            new[after[0]] = np.broadcast_to(ids.reshape(along), [shape[dim] for dim in before]).reshape(-1)
        else:
            flow.pin([labels[dim] for dim in before], _RESHAPED)
            for dim in after:
                (new[dim],) = flow.pinned([new_shape[dim]], _RESHAPED)
    return [new]


def _factors(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which dimensions of size > 1 of a view come from which, in the smallest possible sets."""
    ours = [dim for dim, size in enumerate(before) if size != 1]
    theirs = [dim for dim, size in enumerate(after) if size != 1]
    if 0 in before:
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


def _expand(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    labels = flow.of(arguments["self"])
    return [[*([None] * (outputs[0].ndim - len(labels))), *labels]]


def _as_strided(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """In place, where only strides of dimensions of size 1 change, as pooling to one pixel does."""
    labels = flow.of(arguments["self"])
    sizes, offset = list(arguments["size"]), arguments["storage_offset"]
    strides = zip(sizes, flow.strides, arguments["stride"], strict=False)
    if offset or len(sizes) != len(labels) or any(size > 1 and old != new for size, old, new in strides):
        return "a change of strides"
    return [labels]


def _turn(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """Roll, flip: what is reordered inside itself is pinned."""
    labels = list(flow.of(arguments["self"]))
    if not arguments["dims"]:
        return "a roll of all values"
    for dim in arguments["dims"]:
        flow.pin([labels[dim]])
        (labels[dim],) = flow.pinned([outputs[0].shape[dim]])
    return [labels]


def _slice(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    labels = list(flow.of(arguments["self"]))
    dim = arguments["dim"]
    labels[dim] = flow.part(labels[dim], slice(arguments["start"], arguments["end"], arguments["step"]))
    return [labels]


def _split(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    dim, start, found = arguments["dim"], 0, []
    for output in outputs:
        labels = list(flow.of(arguments["self"]))
        end = start + output.shape[dim]
        labels[dim] = flow.part(labels[dim], slice(start, end))
        found.append(labels)
        start = end
    return found


def _pick(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """Select, unbind: the dimension that goes is pinned."""
    labels = list(flow.of(arguments["self"]))
    flow.pin([labels.pop(arguments["dim"])])
    return [list(labels) for _ in outputs]


def _index(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels] | str:
    """Rows chosen by a vector that does not depend on the inputs; their dimension is pinned."""
    dims = [dim for dim, index in enumerate(arguments["indices"]) if index is not None]
    (index,) = [arguments["indices"][dim] for dim in dims] if len(dims) == 1 else [None]
    if index is None or index.ndim > 1 or flow.is_live(index):
        return "an indexing by values of its own, or by several tensors"
    labels = list(flow.of(arguments["self"]))
    flow.pin([labels[dims[0]], *flow.of(index)])
    labels[dims[0] : dims[0] + 1] = flow.pinned(index.shape)
    return [labels]


def _cat(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    """Rows of numbers are joined; what is not followed gets numbers of its own, which are pinned."""
    tensors = [tensor for tensor in arguments["tensors"] if tensor.shape != (0,)]
    (output,) = outputs
    dim = arguments["dim"] % output.ndim
    labels: Labels = [
        flow.tie([flow.of(tensor)[other] for tensor in tensors]) if other != dim and output.shape[other] > 1 else None
        for other in range(output.ndim)
    ]
    joined = [flow.of(tensor)[dim] for tensor in tensors]
    if any(ids is not None for ids in joined):
        rows = [
            flow.new(tensor.shape[dim]) if ids is None else ids for tensor, ids in zip(tensors, joined, strict=True)
        ]
        flow.pin(row for row, ids in zip(rows, joined, strict=True) if ids is None)
        labels[dim] = np.concatenate(rows)
    return [labels]


def _stack(flow: Flow, arguments: Arguments, outputs: Outputs) -> list[Labels]:
    labels = [flow.tie(list(meeting)) for meeting in zip(*(flow.of(t) for t in arguments["tensors"]), strict=True)]
    labels.insert(arguments["dim"] % outputs[0].ndim, None)
    return [labels]


_SPATIAL_RULES = {num_dims: _spatial(num_dims) for num_dims in (1, 2, 3)}

_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "constant_pad_nd": _pad,
    "expand": _expand,
    "as_strided": _as_strided,
    "slice": _slice,
    "index": _index,
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
         "miopen_batch_norm", "_batch_norm_no_update"),
        _batch_norm,
    ),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix_product),
    **dict.fromkeys(("permute", "transpose", "t"), _reorder),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze"), _view),
    **dict.fromkeys(("roll", "flip"), _turn),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("select", "unbind"), _pick),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(
        ("hardswish", "copy", "masked_fill", "_to_copy", "detach", "alias", "lift_fresh", "_softmax", "_log_softmax",
         "where", "_prelu_kernel", "native_layer_norm"),
        _pointwise,
    ),
    **dict.fromkeys(
        ("fill", "zero", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
         "new_ones", "new_full", "new_empty"),
        _as_it_was,
    ),
}  # fmt: skip
"""Name -> rule."""
