"""Folding batch norms into the convolutions before them, so that zeros stay exactly +0.0."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.export.onnx_file import inner_graphs, require_onnx

Array = NDArray[Any]


def fold_batch_norms(model: Any, exact: Mapping[str, Array] | None = None) -> None:
    """Fold every BatchNormalization into the Conv or ConvTranspose before it, unless others read that one's output.

    Each output channel of a weight is multiplied by one number; convolutions that share a weight get copies of
    their own. Computed in float64 and rounded once; zeros stay +0.0.

    Args:
        model: an `onnx.ModelProto`, changed in place.
        exact: by name of an initializer its values before they were rounded to it.
    """
    graph = model.graph
    constants = constant_values(graph)
    num_readers = Counter(_reads(graph))
    producers = {name: node for node in graph.node for name in node.output}
    new_names: Counter[str] = Counter()

    def value(name: str) -> Array:
        return np.asarray((exact or {}).get(name, constants[name]), dtype=np.float64)

    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or num_readers[conv.output[0]] != 1:
            continue
        weight, bias = conv.input[1], conv.input[2] if len(conv.input) > 2 else ""
        if not {weight, *norm.input[1:], *([bias] if bias else [])} <= constants.keys():
            continue
        gamma, beta, mean, variance = (value(name) for name in norm.input[1:])
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        folded = {
            weight: _scale_outputs(value(weight), factor, conv),
            norm.input[2]: ((value(bias) if bias else 0.0) - mean) * factor + beta,
        }
        del conv.input[1:]
        for name, array in folded.items():
            new_names[name] += 1
            conv.input.append(f"{name}.folded.{new_names[name]}")
            dtype = constants[weight].dtype
            graph.initializer.append(_tensor(array.astype(dtype), conv.input[-1]))
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _remove_unread(graph)


def constant_values(graph: Any) -> dict[str, Array]:
    """Return the values of all initializers and constants of a graph by name."""
    to_array = require_onnx().numpy_helper.to_array
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    return {name: to_array(tensor) for name, tensor in tensors.items()}


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return the value of an attribute of a node, `default` where it is not set."""
    found = [entry for entry in node.attribute if entry.name == name]
    return require_onnx().helper.get_attribute_value(found[0]) if found else default


def _scale_outputs(weight: Array, factor: Array, conv: Any) -> Array:
    """Multiply each output channel of a convolution's weight by its factor; zeros become +0.0."""
    if conv.op_type == "Conv":  # (out, in/groups, *kernel)
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # (in, out/groups, *kernel): input channels of group g see the outputs of group g only
        groups = attribute(conv, "group", 1)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        scaled = (by_group * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    return np.where(weight == 0, 0.0, scaled)


def _tensor(array: Array, name: str) -> Any:
    return require_onnx().numpy_helper.from_array(array, name)


def _reads(graph: Any) -> Iterator[str]:
    """Yield every name that nodes, the graphs inside them, and the outputs of a graph read."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in inner_graphs(node):
            yield from _reads(inner)


def _remove_unread(graph: Any) -> None:
    read = set(_reads(graph))
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
