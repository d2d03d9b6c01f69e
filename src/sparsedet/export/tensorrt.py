"""Which layers TensorRT's 2:4 kernels can serve, and which of them are large enough to profit.

Nothing is run, so no speed is claimed: TensorRT times a sparse and a dense kernel for each layer and takes the faster.

Sources: NVIDIA's maintainers in NVIDIA/TensorRT issues #3849 and #4065 (sparse kernels are faster where input and
output channels are 256 or more), #4054 (grouped convolutions are not considered) and #1403 (64 channels: eligible, not
picked).
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsedet.common.errors import ConfigError
from sparsedet.export.counting import TensorCount
from sparsedet.export.onnx_fold import attribute
from sparsedet.export.onnx_weights import PASSING_NODES

MIN_CHANNELS = 256

CLAIM = (
    "nothing was run: TensorRT times a sparse and a dense kernel for each layer and takes the faster; "
    "large means that its developers saw sparse kernels win at such sizes (NVIDIA/TensorRT #3849, #4065)"
)


@dataclass(frozen=True)
class Readiness:
    """What TensorRT can do with one weight.

    Attributes:
        name: its name in the file.
        in_channels: input channels, over all groups where these are known.
        out_channels: output channels.
        kernel: kernel size; empty for a linear layer.
        groups: groups of the convolution; None where the file does not say it.
        state: ``large``: valid 2:4 and large enough to profit; ``valid``: valid 2:4, but no profit is to be expected;
            ``no``: not 2:4.
        reason: why it is not ``large``; empty where it is.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    groups: int | None
    state: Literal["large", "valid", "no"]
    reason: str


@dataclass(frozen=True)
class BuildLog:
    """What trtexec logged with ``--sparsity=enable --verbose``.

    Attributes:
        eligible: layers whose weights it found to be 2:4, by their names in the engine.
        picked: those of them that run a sparse kernel.
    """

    eligible: tuple[str, ...]
    picked: tuple[str, ...]


def assess(counts: Iterable[TensorCount], groups: dict[str, int | None]) -> tuple[Readiness, ...]:
    """Say of each weight what TensorRT can do with it.

    Args:
        counts: zeros of the weights, shape (O, I/groups, *kernel).
        groups: groups of each layer by the name of its weight; None or absent where they are not known.
    """
    found = []
    for count in counts:
        num_groups = 1 if len(count.shape) == 2 else groups.get(count.name)
        num_out, num_in = count.shape[0], count.shape[1] * (num_groups or 1)
        state, reason = _judge(count, num_in, num_groups)
        found.append(Readiness(count.name, num_in, num_out, count.shape[2:], num_groups, state, reason))
    return tuple(found)


def _judge(count: TensorCount, num_in: int, groups: int | None) -> tuple[Literal["large", "valid", "no"], str]:
    num_out = count.shape[0]
    if count.n_m_violations is None:
        per_group = " per group" if (groups or 1) > 1 else ""
        return "no", f"{count.shape[1]} input channels{per_group} are no multiple of 4"
    if count.n_m_violations:
        return "no", f"{count.n_m_violations} of {count.numel // 4} groups of 4 hold more than 2 non-zeros"
    if (groups or 1) > 1:
        return "valid", f"{groups} groups: grouped convolutions are not considered (NVIDIA/TensorRT #4054)"
    if min(num_in, num_out) < MIN_CHANNELS:
        return "valid", f"fewer than {MIN_CHANNELS} input or output channels (NVIDIA/TensorRT #3849, #4065, #1403)"
    if groups is None:
        return "valid", "large, unless it is a grouped convolution, which this file does not say"
    return "large", ""


def onnx_groups(graph: Any) -> dict[str, int | None]:
    """Return the groups of the convolutions of an ONNX graph by the name of their weight."""
    origin: dict[str, str] = {}
    groups: dict[str, int | None] = {}
    for node in graph.node:
        if node.op_type in PASSING_NODES and node.input:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        elif node.op_type in ("Conv", "ConvTranspose"):
            groups[origin.get(node.input[1], node.input[1])] = attribute(node, "group", 1)
    return groups


def trtexec_command(onnx: Path, shapes: Mapping[str, Sequence[int | str]] | None = None) -> str:
    """Return the command that builds an engine with 2:4 kernels and logs which layers run them.

    Args:
        onnx: the file.
        shapes: sizes of its inputs, as of `input_shapes`; trtexec takes 1 for a size that may vary and is not given.
    """
    sizes = [f"{name}:{'x'.join(map(str, shape))}" for name, shape in (shapes or {}).items()]
    given = [f"--shapes={','.join(sizes)}"] if sizes else []
    engine = f"--saveEngine={onnx.with_suffix('.engine')}"
    return shlex.join(["trtexec", f"--onnx={onnx}", engine, *given, "--fp16", "--sparsity=enable", "--verbose"])


def input_shapes(graph: Any, image_shape: Sequence[int] | None) -> dict[str, tuple[int | str, ...]]:
    """Return the sizes of all inputs of an ONNX graph for a batch of one; nothing where none may vary.

    Args:
        graph: its inputs may be of any batch size and, where they have four dimensions, of any height and width.
        image_shape: (B, 3, H, W), of which height and width are taken; None: they are unknown.

    Returns:
        By name of the input. Sizes that are not known are their names in capital letters, to be replaced.
    """
    weights = {tensor.name for tensor in graph.initializer}
    shapes: dict[str, tuple[int | str, ...]] = {}
    varies = False
    for entry in graph.input:
        dims = entry.type.tensor_type.shape.dim
        if entry.name in weights or not dims:
            continue
        varies |= any(not dim.HasField("dim_value") for dim in dims)
        known = [1, *(list(image_shape)[1:] if image_shape and len(dims) == len(image_shape) else [])]
        shapes[entry.name] = tuple(
            dim.dim_value
            if dim.HasField("dim_value")
            else known[place]
            if place < len(known)
            else dim.dim_param.upper() or f"SIZE{place}"
            for place, dim in enumerate(dims)
        )
    return shapes if varies else {}


def read_build_log(path: Path) -> BuildLog:
    """Read which layers TensorRT found eligible and which it picked in the output of `trtexec_command`.

    The two lines it looks for are as in the logs of NVIDIA/TensorRT issues #4056, #2169 and #1403.

    Raises:
        ConfigError: the file cannot be read or has not both lines.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: expected a log of trtexec, got '{error.strerror}'. Check the path.") from error
    eligible = re.search(r"\(Sparsity\) Layers eligible for sparse math:(.*)", text)
    picked = re.search(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)", text)
    if eligible is None or picked is None:
        raise ConfigError(
            f"{path}: expected a log of trtexec with the two lines that begin with '(Sparsity)', got none. "
            "Run trtexec with --sparsity=enable --verbose and keep its whole output."
        )
    return BuildLog(_names(eligible[1]), _names(picked[1]))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(", ") if name.strip())
