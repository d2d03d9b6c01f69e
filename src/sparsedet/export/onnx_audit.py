"""What zeros an ONNX file holds, and whether they are all those of the model: found by content, not by name.

Exporting renames weights, multiplies each output channel by a number (batch norms that are folded), copies a weight
for each use or keeps one copy of equal ones, and transposes linear layers. None of this moves a zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsedet.common.errors import CheckpointError
from sparsedet.export.counting import TensorCount, count_tensor
from sparsedet.export.onnx_file import read_onnx
from sparsedet.export.onnx_fold import attribute, constant_values

Array = NDArray[Any]

SAMPLE = 8  # output channels compared first
PRECISIONS = {
    "float64": (2**-52, 0.0),
    "float32": (2**-23, 1e-45),
    "float16": (2**-10, 6e-8),
    "bfloat16": (2**-7, 1e-40),
}
"""Number formats of weights -> distance from 1 to the next number, smallest number above 0."""


@dataclass(frozen=True)
class FoundWeight:
    """Where a weight of the model is in the file.

    Attributes:
        name: full parameter name in the model.
        copies: names of the tensors in the file; empty if it is not there.
        num_zeros: zeros of the weight in the model.
        num_lost: zeros of it that are none in the file, in the worst copy.
        num_extra: zeros that only the file has, in the copy with most: too small for its number format, or an
            output channel that a batch norm multiplies by zero.
    """

    name: str
    copies: tuple[str, ...]
    num_zeros: int
    num_lost: int
    num_extra: int


@dataclass(frozen=True)
class OnnxAudit:
    """Zeros of an ONNX file.

    Attributes:
        tensors: the weights of its convolutions, linear layers and products with a constant, each as a weight of the
            layer it came from: (out, in/groups, *kernel).
        weights: those of the model it was compared with; empty without one.
        faults: what is not as in the model; empty when all holds.
    """

    tensors: tuple[TensorCount, ...]
    weights: tuple[FoundWeight, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def measured_sparsity(self) -> float:
        """Share of zeros over all weights in the file, copies included."""
        return sum(tensor.num_zeros for tensor in self.tensors) / max(sum(t.numel for t in self.tensors), 1)


def audit_onnx(path: Path, expected: Mapping[str, Tensor] | None = None) -> OnnxAudit:
    """Count the zeros of an ONNX file, and look in it for the weights of a model.

    Args:
        path: the file.
        expected: weights of the model by name, shape (out, in/groups, *kernel), pruned entries 0; transposed
            convolutions as they are, (in, out/groups, *kernel).

    Raises:
        CheckpointError: the file cannot be read; see `read_onnx`.
        MissingExtraError: onnx is not installed.
    """
    return audit_graph(path, read_onnx(path).graph, expected)


def audit_graph(path: Path, graph: Any, expected: Mapping[str, Tensor] | None = None) -> OnnxAudit:
    """Do what `audit_onnx` does with the graph of a file that was read already."""
    try:
        stored = _stored_weights(graph)
    except (ValueError, IndexError, TypeError) as error:  # attributes that do not fit the shapes
        raise CheckpointError(f"{path}: expected a valid ONNX graph, got '{error}'. Export it again.") from error
    tensors = tuple(count_tensor(weight.name, torch.from_numpy(weight.rows)) for weight in stored)
    if expected is None:
        return OnnxAudit(tensors)
    return OnnxAudit(tensors, *_find_all({name: _array(weight) for name, weight in expected.items()}, stored))


@dataclass(frozen=True)
class _Stored:
    """A weight in the file.

    Attributes:
        name: of the tensor.
        values: as the layer of a model holds them, float32 or float64.
        dtype: name of the number format in the file.
        groups: of a transposed convolution; None for all other layers.
    """

    name: str
    values: Array
    dtype: str
    groups: int | None

    @property
    def rows(self) -> Array:
        """The values by output channel: shape (out, in/groups, *kernel)."""
        return _by_output(self.values, self.groups)


def _array(weight: Tensor) -> Array:
    weight = weight.detach().cpu()
    return np.asarray(weight.numpy() if weight.dtype == torch.float64 else weight.float().numpy())


def _by_output(values: Array, groups: int | None) -> Array:
    if groups is None:
        return np.ascontiguousarray(values)
    by_group = values.reshape(groups, -1, *values.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(by_group.reshape(-1, *by_group.shape[2:]))


def _find_all(wanted: dict[str, Array], stored: list[_Stored]) -> tuple[tuple[FoundWeight, ...], tuple[str, ...]]:
    """Return where each wanted weight is, and what is wrong."""
    found: dict[str, list[tuple[str, int, int]]] = {name: [] for name in wanted}
    faults = []
    for weight in stored:
        fits = [(fit, name) for name, values in wanted.items() if (fit := _fit(values, weight)) is not None]
        if fits:
            (lost, extra), name = min(fits, key=lambda entry: sum(entry[0]))
            found[name].append((weight.name, lost, extra))
        elif any(values.shape == weight.values.shape for values in wanted.values()):
            faults.append(
                f"{weight.name}: expected a weight of the model, as its shape {list(weight.values.shape)} says, "
                "got other values"
            )
    for name, copies in found.items():  # equal weights may have become one
        if not copies:
            fits_of = [(weight.name, fit) for weight in stored if (fit := _fit(wanted[name], weight)) is not None]
            copies.extend((copy, lost, extra) for copy, (lost, extra) in fits_of if lost == 0)
    weights = tuple(
        FoundWeight(
            name,
            tuple(copy for copy, _, _ in copies),
            int((wanted[name] == 0).sum()),
            max((lost for _, lost, _ in copies), default=0),
            max((extra for _, _, extra in copies), default=0),
        )
        for name, copies in found.items()
    )
    faults += [
        f"{weight.name}: expected it in the file, got no tensor like it" for weight in weights if not weight.copies
    ]
    faults += [
        f"{name}: expected zeros where the model has them, got other values at {lost} places of '{copy}'"
        for name, copies in found.items()
        for copy, lost, _ in copies
        if lost
    ]
    return weights, tuple(faults)


def _fit(expected: Array, weight: _Stored) -> tuple[int, int] | None:
    """Return how many zeros a stored weight lost and gained if it is `expected` but for one factor per output channel.

    None: it is another weight. What stands at zeros of `expected` does not decide that.
    """
    if expected.shape != weight.values.shape or not expected.size:
        return None
    rows, values = (array.reshape(len(array), -1) for array in (_by_output(expected, weight.groups), weight.rows))
    some = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)
    if not (_is_scaled(rows[some], values[some], weight.dtype) and _is_scaled(rows, values, weight.dtype)):
        return None
    return int(((rows == 0) & (values != 0)).sum()), int(((rows != 0) & (values == 0)).sum())


def _is_scaled(rows: Array, values: Array, dtype: str) -> bool:
    """Tell whether each row of `values` is a multiple of that of `rows`, where `rows` is not zero."""
    rows, values = rows.astype(np.float64), np.where(rows == 0, 0.0, values)
    squares = (rows * rows).sum(axis=1)
    factors = (rows * values).sum(axis=1) / np.where(squares == 0, 1.0, squares)
    scaled = rows * factors[:, None]
    step, smallest = PRECISIONS[dtype]
    tolerance = 2 * step * np.abs(scaled).max(axis=1, keepdims=True) + smallest
    return bool((np.abs(values - scaled) <= tolerance).all())


def _stored_weights(graph: Any) -> list[_Stored]:
    """Return the constant weights of the nodes of `graph` and of the graphs inside them, each once."""
    found: dict[tuple[str, tuple[int, ...]], _Stored] = {}
    for node, name, values in _constant_inputs(graph, {}):
        if values.dtype.name in PRECISIONS:
            groups = attribute(node, "group", 1) if node.op_type == "ConvTranspose" else None
            wide = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
            found.setdefault((name, values.shape), _Stored(name, wide, values.dtype.name, groups))
    return list(found.values())


def _constant_inputs(graph: Any, outer: dict[str, Array]) -> Iterator[tuple[Any, str, Array]]:
    """Yield every weight as (node, name of the tensor, values as a layer holds them)."""
    constants = {**outer, **constant_values(graph)}
    origin: dict[str, str] = {}  # of a constant that was computed from another one
    for node in graph.node:
        for entry in node.attribute:
            for inner in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                yield from _constant_inputs(inner, constants)
        source = node.input[0] if node.input else ""
        if source in constants and node.op_type in ("Identity", "Cast", "Transpose"):
            is_turned = node.op_type == "Transpose"
            constants[node.output[0]] = (
                constants[source].transpose(attribute(node, "perm", None)) if is_turned else constants[source]
            )
            origin[node.output[0]] = origin.get(source, source)
        for place, is_turned in _weight_places(node):
            name = node.input[place]
            if name in constants and (constants[name].ndim == 2 or "Conv" in node.op_type):
                values = constants[name].swapaxes(-1, -2) if is_turned else constants[name]
                yield node, origin.get(name, name), values


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
