"""From a module to one ONNX file in which its zeros stand."""

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparsedet.common.errors import ConfigError
from sparsedet.common.modes import in_eval_mode
from sparsedet.export.onnx_file import check_size, require_onnx, write_onnx
from sparsedet.export.onnx_fold import fold_batch_norms
from sparsedet.sparsity.weights import unwrap

OPSET = 18
_FOLD_BYTES = 2**27  # constants up to this size are computed at export


def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_dims: Sequence[Mapping[int, str]] | None = None,
    fp16: bool = False,
    slim: bool = True,
    keep_batch_norm: bool = False,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Write `model`, as it is in eval mode, as one ONNX file with its weights inside; the model does not change.

    Zeros of the weights are zeros in the file. Batch norms are folded into the convolutions before them.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional tensors of its forward, on its device.
        path: file to write.
        input_names: of the graph, one for each input; empty leaves the exporter's.
        output_names: likewise, one for each tensor of the output.
        dynamic_dims: for each input its dimensions that may have another size later, with their names; None:
            the first one of every input is the batch.
        fp16: store and compute in float16, inputs and outputs stay float32; batch norms that are kept stay float32.
        slim: let onnxslim remove what is not needed.
        keep_batch_norm: do not fold batch norms.
        translations: ONNX Script functions for operators that the exporter does not know.

    Raises:
        ConfigError: the module cannot be exported, or does not fit into one file.
        MissingExtraError: a package of the extra ``onnx`` is not installed.
        StorageError: the file cannot be written; what stood at `path` before still stands.
    """
    for package in ("onnx", "onnxscript", *(["onnxslim"] if slim else [])):
        require_onnx(package)
    plain = unwrap(model)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in plain.state_dict().values())
    check_size(num_bytes // 2 if fp16 else num_bytes)
    dims = dynamic_dims if dynamic_dims is not None else [{0: "batch"} for _ in example_inputs]
    inputs = tuple(_widened(tensor, names) for tensor, names in zip(example_inputs, dims, strict=True))
    traced, exact = (_halved(plain), _float_weights(plain)) if fp16 else (plain, None)
    with in_eval_mode(traced), torch.no_grad():
        graph = _trace(traced, inputs, list(input_names), list(output_names), dims, dict(translations or {}))
    if not keep_batch_norm:
        fold_batch_norms(graph, exact)
    if slim:
        graph = _slimmed(graph)
    _remove_traces(graph)
    write_onnx(path, graph)


def _trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    dims: Sequence[Mapping[int, str]],
    translations: dict[Callable[..., Any], Callable[..., Any]],
) -> Any:
    """Return the graph of `model` as an `onnx.ModelProto`, with constants computed but batch norms as they are."""
    shapes: Any = tuple(dict(names) for names in dims)
    try:
        with warnings.catch_warnings():
            # two inputs whose batch is the same size: that is what the name says
            warnings.filterwarnings("ignore", "# The axis name: .* will not be used, since it shares", UserWarning)
            program = torch.onnx.export(
                model,
                inputs,
                input_names=input_names or None,
                output_names=output_names or None,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(shapes,) if isinstance(model, _HalfInside) else shapes,  # whose forward has *inputs
                custom_translation_table=translations,
                optimize=False,  # it would fold some batch norms, whatever is asked, and leave -0.0
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(
            f"model: expected a module that torch.export can trace, got {type(error).__name__}: {reason}. "
            "Try torch.export.export(model, example_inputs) alone to see where."
        ) from error
    assert program is not None
    optimizer = require_onnx("onnxscript.optimizer")
    optimizer.inline(program.model)
    optimizer.fold_constants(program.model, input_size_limit=_FOLD_BYTES, output_size_limit=_FOLD_BYTES)
    optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def _slimmed(graph: Any) -> Any:
    try:
        # Its own folding of batch norms breaks float16, and is wanted by nobody who keeps them.
        skipped = ["FusionConvBN", "FusionConvTransposeBN"]
        return require_onnx("onnxslim").slim(graph, skip_fusion_patterns=skipped)
    except Exception as error:  # of whatever kind
        raise ConfigError(
            f"slim: expected a graph that onnxslim reads, got {type(error).__name__}: {error}. Export with --no-slim."
        ) from error


def _widened(tensor: Tensor, dims: Collection[int]) -> Tensor:
    """Return `tensor` with a size of at least 2 in the dimensions `dims`: the exporter takes a 1 as fixed, silently."""
    for dim in dims:
        if tensor.shape[dim] == 1:
            tensor = tensor.repeat_interleave(2, dim)
    return tensor


class _HalfInside(nn.Module):
    """A module that computes in float16 and takes and gives float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return _cast(self.model(*_cast(inputs, torch.float32, torch.float16)), torch.float16, torch.float32)


def _halved(model: nn.Module) -> nn.Module:
    """Return a copy in float16 with float32 at both ends; batch norms keep their float32 statistics."""
    half = copy.deepcopy(model).half()
    for module in half.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
    return _HalfInside(half)


def _float_weights(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the weights of `model` by the names that they have in its halved copy."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {f"model.{name}": parameter.detach().float().cpu().numpy() for name, parameter in parameters}


def _cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """Return `value` with every tensor of dtype `source` in it cast to `target`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(target) if tensor.dtype == source else tensor, value)


def _remove_traces(model: Any) -> None:
    """Remove what the exporter notes about the origin of nodes: paths of source files among it."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
