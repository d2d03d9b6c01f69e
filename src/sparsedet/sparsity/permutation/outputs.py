"""Outputs of a network before and after its channels are moved."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.profile import run_once
from sparsedet.sparsity.weights import unwrap

_ROUNDING = 1000
"""Rounding errors that outputs may have, in units of the precision of a number as large as the largest of them."""

_COARSEST = 0.1
"""Share of the largest output by which outputs may change where numbers have little precision."""

_SMALL = 1e-3
"""An output tensor of smaller numbers is compared as if they were this share of the largest of all."""


class Outputs:
    """What a model returns for its example inputs, kept to compare with.

    Args:
        model: any module.
        example_inputs: positional arguments of its forward; noise stands in for a tensor of zeros, which would not
            tell channels apart.
        run: called with them in the place of the forward.

    Attributes:
        largest: largest absolute value.

    Raises:
        ConfigError: the forward pass fails, or returns nothing that can be compared.
    """

    def __init__(self, model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None) -> None:
        self._model, self._run = model, run or unwrap(model)
        self.inputs: tuple[Any, ...] = tree_map(_telling, example_inputs)
        self._expected = self._outputs()
        self._scales = [float(output.abs().max()) if output.numel() else 0.0 for output in self._expected]
        self.largest = max(self._scales, default=0.0)
        if not 0 < self.largest < math.inf:
            raise ConfigError(
                "example_inputs: expected a forward pass that returns finite floating-point values, not all of them 0, "
                f"got {sum(output.numel() for output in self._expected)} values, the largest {self.largest:g}. Pass "
                "other inputs, or run=… that returns what the layers give, before boxes are selected."
            )
        self._precision = max(map(_precision, (*self._expected, *model.parameters())))

    def difference(self) -> tuple[float, bool]:
        """Run the model as it is now; return the largest absolute difference, and whether it is a rounding error."""
        outputs = self._outputs()
        if [output.shape for output in outputs] != [output.shape for output in self._expected]:
            return math.inf, False
        differences = [_difference(*pair) for pair in zip(outputs, self._expected, strict=True)]
        is_rounding = all(
            difference <= self._precision * max(scale, _SMALL * self.largest)
            for difference, scale in zip(differences, self._scales, strict=True)
        )
        return max(differences), is_rounding

    def _outputs(self) -> list[Tensor]:
        results: list[object] = []
        run_once(self._model, self.inputs, lambda *inputs: results.append(self._run(*inputs)))
        return [tensor for tensor in tensors_in(results) if tensor.is_floating_point()]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model returns: containers, data classes and plain objects of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from tensors_in(list(vars(value).values()))


def _telling(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.any():
        return value
    generator = torch.Generator().manual_seed(0)
    return torch.randn(value.shape, generator=generator).to(value)


def _precision(tensor: Tensor) -> float:
    """Return the share of the largest output by which rounding may change the outputs."""
    if not tensor.is_floating_point():
        return 0.0
    has_tf32 = tensor.is_cuda and tensor.dtype == torch.float32  # in convolutions, by default
    return min(_COARSEST, _ROUNDING * torch.finfo(torch.float16 if has_tf32 else tensor.dtype).eps)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    is_same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(is_same, 0, (ours - theirs).abs()).nan_to_num(math.inf)
    return float(difference.max()) if difference.numel() else 0.0
