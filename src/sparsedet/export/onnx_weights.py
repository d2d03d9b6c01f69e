"""The constant weights of an ONNX graph, wherever they come from in it, as the layers of a model hold them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import CheckpointError
from sparsedet.export.onnx_file import inner_graphs
from sparsedet.export.onnx_fold import attribute, constant_values

Array = NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Number formats of weights that are not quantised."""

MIN_VALUES = 256
"""Constants with fewer values, such as anchors, are not taken for weights that are not counted."""

INTEGERS = ("int8", "uint8", "int4", "uint4", "int16", "uint16")
"""Number formats of quantised weights."""

PASSING_NODES = ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear")
"""Nodes that pass a weight on; their first input is the weight."""

INTEGER_NODES = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), 1),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"), 1),
}
"""Nodes that compute with integers -> which of their inputs is the weight."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight in the file.

    Attributes:
        name: of the tensor.
        values: as the layer of a model holds them, float32 or float64.
        dtype: name of the number format in the file.
        groups: of a transposed convolution; None for all other layers.
        step: of a quantised weight, for each of its values, how far the next one is; None where it is not quantised.
    """

    name: str
    values: Array
    dtype: str
    groups: int | None
    step: Array | None = None

    @property
    def rows(self) -> Array:
        """The values by output channel: shape (out, in/groups, *kernel)."""
        return by_output(self.values, self.groups)

    @property
    def step_rows(self) -> Array | None:
        """The steps in the order of `rows`."""
        return None if self.step is None else by_output(self.step, self.groups)


@dataclass(frozen=True)
class _Constant:
    values: Array
    origin: str
    step: Array | None = None

    def turned(self, turn: Any) -> "_Constant":
        return _Constant(turn(self.values), self.origin, None if self.step is None else turn(self.step))


def by_output(values: Array, groups: int | None) -> Array:
    """Order a weight by output channel; `groups` is that of a transposed convolution, None for other layers."""
    if groups is None:
        return np.ascontiguousarray(values)
    by_group = values.reshape(groups, -1, *values.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(by_group.reshape(-1, *by_group.shape[2:]))


def stored_weights(path: Path, graph: Any) -> list[StoredWeight]:
    """Return the constant weights of the nodes of `graph` and of the graphs inside them, each tensor once.

    Quantised weights have the values that DequantizeLinear gives them: zero where they equal the zero point.

    Args:
        path: the file, for messages.
        graph: of an `onnx.ModelProto`.

    Raises:
        CheckpointError: a weight is quantised in another way; the message names its tensor.
    """
    found: dict[tuple[str, tuple[int, ...]], StoredWeight] = {}
    for node, constant in _constant_inputs(path, graph, {}, {}):
        values, dtype = constant.values, constant.values.dtype.name
        if dtype in FLOATS:
            groups = attribute(node, "group", 1) if node.op_type == "ConvTranspose" else None
            wide = values.astype(np.float64 if dtype == "float64" else np.float32)
            found.setdefault(
                (constant.origin, values.shape), StoredWeight(constant.origin, wide, dtype, groups, constant.step)
            )
    return list(found.values())


def other_tensors(graph: Any, weights: Collection[str]) -> tuple[str, ...]:
    """Return the names of further tensors of floats in `graph` and the graphs inside it that may be weights.

    They have at least two dimensions and `MIN_VALUES` values, and are none of `weights`.
    """
    found = {
        name
        for name, values in constant_values(graph).items()
        if values.ndim > 1 and values.size >= MIN_VALUES and values.dtype.name in FLOATS and name not in weights
    }
    for node in graph.node:
        for inner in inner_graphs(node):
            found.update(other_tensors(inner, weights))
    return tuple(sorted(found))


def _constant_inputs(
    path: Path, graph: Any, outer: Mapping[str, _Constant], outer_integers: Mapping[str, str]
) -> Iterator[tuple[Any, _Constant]]:
    """Yield every weight with its node, as a layer holds it."""
    constants = {**outer, **{name: _Constant(values, name) for name, values in constant_values(graph).items()}}
    integers = dict(outer_integers)  # value that was computed -> the quantised tensor that it comes from
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _constant_inputs(path, inner, constants, integers)
        computed = _computed(path, node, constants)
        if computed is not None:
            constants[node.output[0]] = computed
        elif tensor := next((integers[name] for name in node.input if name in integers), None) or _quantised(
            node, constants
        ):
            integers |= dict.fromkeys(node.output, tensor)
        yield from ((node, constant) for constant in _weights(path, node, constants, integers))


def _weights(
    path: Path, node: Any, constants: Mapping[str, _Constant], integers: Mapping[str, str]
) -> Iterator[_Constant]:
    """Yield the constant weights of one node, as a layer holds them."""
    number = INTEGER_NODES.get(node.op_type)
    if number is not None and number < len(node.input):
        name = node.input[number]
        raise _refused(path, constants[name].origin if name in constants else name, f"in a node {node.op_type}")
    for place, is_turned in _weight_places(node):
        name = node.input[place]
        if name in integers:
            raise _refused(path, integers[name], f"and computed otherwise for a node {node.op_type}")
        constant = constants.get(name)
        if constant is None or (constant.values.ndim != 2 and "Conv" not in node.op_type):
            continue
        if constant.values.dtype.name in INTEGERS:
            raise _refused(path, constant.origin, f"without DequantizeLinear for a node {node.op_type}")
        yield constant.turned(lambda array: array.swapaxes(-1, -2)) if is_turned else constant


def _computed(path: Path, node: Any, constants: Mapping[str, _Constant]) -> _Constant | None:
    """Return the output of a node that only passes a constant on; None for all others."""
    source = constants.get(node.input[0]) if node.input else None
    if source is None:
        return None
    match node.op_type:
        case "Identity" | "Cast":
            return source
        case "Transpose":
            axes = attribute(node, "perm", None)
            return source.turned(lambda array: array.transpose(axes))
        case "QuantizeLinear" | "DequantizeLinear":
            scale, zero = _scale_and_zero(path, node, source, constants)
            if node.op_type == "DequantizeLinear":
                values = (source.values.astype(np.float64) - zero) * scale
                return _Constant(values.astype(np.float32), source.origin, np.broadcast_to(scale, values.shape))
            kind = constants[node.input[2]].values.dtype if len(node.input) > 2 and node.input[2] else np.dtype("uint8")
            if kind.kind not in "iu" or attribute(node, "output_dtype", 0):
                raise _refused(path, source.origin, f"by QuantizeLinear to {kind.name}")
            limits = np.iinfo(kind)
            rounded = np.rint(source.values.astype(np.float64) / scale) + zero
            return _Constant(rounded.clip(limits.min, limits.max).astype(kind), source.origin)
    return None


def _scale_and_zero(
    path: Path, node: Any, source: _Constant, constants: Mapping[str, _Constant]
) -> tuple[Array, Array]:
    """Return scale and zero point of a node for the values of `source`, in shapes that broadcast to theirs."""
    found = []
    for name in [name for name in node.input[1:] if name]:
        constant = constants.get(name)
        if constant is None or constant.values.ndim > 1:  # blocks have as many dimensions as the tensor
            raise _refused(path, source.origin, "with scales that are not constant, one or one for each channel")
        values = constant.values.astype(np.float64)
        if values.size != 1:
            shape = [1] * source.values.ndim
            shape[attribute(node, "axis", 1)] = -1
            values = values.reshape(shape)
        found.append(values)
    return found[0], found[1] if len(found) > 1 else np.zeros(1)


def _quantised(node: Any, constants: Mapping[str, _Constant]) -> str | None:
    """Return the quantised tensor of at least two dimensions that a node reads, if it reads one."""
    read = (constants[name] for name in node.input if name in constants)
    return next((c.origin for c in read if c.values.ndim > 1 and c.values.dtype.name in INTEGERS), None)


def _refused(path: Path, tensor: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected weights as floats, or quantised to integers and read by DequantizeLinear (QDQ), got "
        f"'{tensor}' quantised {how}. Quantise in the QDQ format, or look at the file before it is quantised."
    )


def _weight_places(node: Any) -> tuple[tuple[int, bool], ...]:
    """Return which inputs of `node` are weights, if they are constant, and which must be turned to (out, in)."""
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return ((1, False),)
        case "Gemm":
            return (0, bool(attribute(node, "transA", 0))), (1, not attribute(node, "transB", 0))
        case "MatMul":
            return (0, False), (1, True)
        case _:
            return ()
