"""Reading ONNX files of any origin safely, and writing them whole."""

import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sparsedet.common.errors import CheckpointError, ConfigError, MissingExtraError
from sparsedet.common.files import write_atomically

MAX_BYTES = 2**31 - 1  # what protobuf can hold in one file
MAX_CALLED_BYTES, MAX_CALLED_RATIO = 2**26, 16  # functions may not fill more than this and this many times the file
SUFFIX = ".onnx"

_COMPLEX = (14, 15)
_FORMATS = {
    1: ("float_data", 32),
    2: ("int32_data", 8),
    3: ("int32_data", 8),
    4: ("int32_data", 16),
    5: ("int32_data", 16),
    6: ("int32_data", 32),
    7: ("int64_data", 64),
    8: ("string_data", 8),
    9: ("int32_data", 8),
    10: ("int32_data", 16),
    11: ("double_data", 64),
    12: ("uint64_data", 32),
    13: ("uint64_data", 64),
    14: ("float_data", 64),
    15: ("double_data", 128),
    16: ("int32_data", 16),
    **dict.fromkeys((17, 18, 19, 20), ("int32_data", 8)),
    **dict.fromkeys((21, 22), ("int32_data", 4)),
}
"""TensorProto.data_type -> field of values that are not raw, bits of a value."""


def require_onnx(name: str = "onnx") -> ModuleType:
    """Import one of the packages of the extra ``onnx``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name}: expected the package, which ONNX files need, got nothing. Run: pip install 'sparsedet[onnx]'"
        ) from error


def read_onnx(path: Path) -> Any:
    """Read an ONNX file whose weights are inside it; nothing else is opened, nothing is executed.

    Returns:
        An `onnx.ModelProto` in which every tensor has as many values as its shape says, and functions stand where they
        were called.

    Raises:
        CheckpointError: the file is missing or damaged, keeps weights in other files or in sparse form, a tensor in it
            is not as long as its shape says, or its functions make far more of it than it is.
        MissingExtraError: onnx is not installed.
    """
    onnx = require_onnx()
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected an ONNX file, got {kind}. Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path}: expected at most 2 GiB, which is what one ONNX file can hold, got {path.stat().st_size} bytes. "
            "Give the file that holds graph and weights."
        )
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        fault = None if model.graph.node else "no graph"
    except Exception as error:  # protobuf has several kinds for a damaged file, by version and implementation
        fault = str(error).split("\n")[0] or type(error).__name__
    if fault is not None:
        raise CheckpointError(
            f"{path}: expected a whole ONNX file, got an unreadable one ({fault}). It may be truncated: export again."
        )
    for tensor in _tensors(model):
        if reason := _tensor_fault(tensor):
            raise CheckpointError(f"{path}: {getattr(tensor, 'name', '') or 'a constant'}: {reason}")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # the latter: names that are no text
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: expected a valid ONNX graph, got '{reason}'. Export it again.") from error
    return _inlined(path, model) if model.functions else model


def inner_graphs(node: Any) -> Iterator[Any]:
    """Yield the graphs inside an `onnx.NodeProto`, as of an If or a Loop."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def write_onnx(path: Path, model: Any) -> None:
    """Write an `onnx.ModelProto`, weights included, as one file.

    Raises:
        ConfigError: it is too large for one file.
        StorageError: the file cannot be written; what stood at `path` before still stands.
    """
    check_size(model.ByteSize())
    content = model.SerializeToString()
    write_atomically(path, lambda stream: stream.write(content))


def check_size(num_bytes: int) -> None:
    """Raise ConfigError where a model of `num_bytes` does not fit into one ONNX file."""
    if num_bytes > MAX_BYTES:
        raise ConfigError(
            f"model: expected at most 2 GiB, which is what one ONNX file can hold, got {num_bytes / 2**30:.2f} GiB. "
            "Export it as fp16 (--fp16), or a smaller model."
        )


def _inlined(path: Path, model: Any) -> Any:
    """Put the functions of a model where they are called, unless that makes far more of it than it is."""
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    num_bytes: dict[tuple[str, str, str], int] = {}  # of a function with all that it calls

    def count(nodes: Iterable[Any]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                if key not in num_bytes:
                    num_bytes[key] = functions[key].ByteSize() + count(functions[key].node)
                total += num_bytes[key]
            total += sum(count(graph.node) for graph in inner_graphs(node))
        return total

    try:
        if (most := count(model.graph.node)) > MAX_CALLED_BYTES + MAX_CALLED_RATIO * model.ByteSize():
            raise ValueError(f"{most} bytes made of {model.ByteSize()}")
        return require_onnx("onnx.inliner").inline_local_functions(model)
    except Exception as error:  # the inliner has kinds of its own
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: expected functions that can be put where they are called, got {reason}. "
            "Export it without functions."
        ) from error


def _tensors(model: Any) -> Iterator[Any]:
    """Yield all tensors of a model: of its graph, its subgraphs, its functions, its constants; sparse ones too."""
    for graph in (
        model.graph,
        *(part for info in model.training_info for part in (info.initialization, info.algorithm)),
    ):
        yield from _graph_tensors(graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from graph.sparse_initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[Any]) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.tensors
        yield from attribute.sparse_tensors
    for graph in (graph for node in nodes for graph in inner_graphs(node)):
        yield from _graph_tensors(graph)


def _tensor_fault(tensor: Any) -> str | None:
    """Return what is wrong with a tensor, None if nothing; no memory is taken for what it claims to be."""
    if not hasattr(tensor, "raw_data"):
        return "expected dense weights, got a sparse tensor. Write the zeros out: few runtimes read sparse tensors."
    if tensor.data_location or tensor.external_data:
        return (
            "expected its values in the file itself, got a reference to another file, which is not opened. "
            "Save the model with its weights inside."
        )
    if any(size < 0 for size in tensor.dims):
        return f"expected sizes of at least 0, got the shape {list(tensor.dims)}. Export the model again."
    num_values = math.prod(tensor.dims)
    field, bits = _FORMATS.get(tensor.data_type, (None, 0))
    if field is None:
        return f"expected a known number format, got type {tensor.data_type}. Export the model again."
    is_raw = tensor.HasField("raw_data")
    got = len(tensor.raw_data if is_raw else getattr(tensor, field))
    # of narrow formats one byte, or one entry of the field, holds several values; complex ones take two entries
    per_byte = -(-num_values * bits // 8)
    expected = per_byte if is_raw or bits < 8 else num_values * (2 if tensor.data_type in _COMPLEX else 1)
    if got != expected:
        unit = "bytes" if is_raw else "entries"
        return f"expected {expected} {unit}, as its shape {list(tensor.dims)} says, got {got}. Export the model again."
    return None
