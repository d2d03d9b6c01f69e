"""One forward pass that measures MACs and input size of every weight that can be pruned."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.undisturbed import undisturbed
from sparsedet.sparsity.weights import ATTENTION_PROJECTIONS, TRANSPOSED, Weight, find_weights, num_dims, unwrap

_FUNCTIONS: dict[Callable[..., Tensor], bool] = {
    functional.linear: False,
    functional.conv1d: False,
    functional.conv2d: False,
    functional.conv3d: False,
    functional.conv_transpose1d: True,
    functional.conv_transpose2d: True,
    functional.conv_transpose3d: True,
}
"""Functions that use a weight directly -> whether they are transposed."""

_ATTENTION_INPUTS = ("query", "key", "value")


@dataclass(frozen=True)
class Profile:
    """What one forward pass does with each weight.

    Attributes:
        num_macs: multiply-accumulates by parameter name, over all calls, for one image; without padding or
            bias being treated apart (1 MAC = 2 FLOPs). Products of attention that no weight takes part in are
            not counted.
        input_sizes: longer side in pixels of the input of each convolution; of several calls the finest
            counts.
        network_input_size: longer side of the network's input = that of the first convolution called; None
            without one.
    """

    num_macs: dict[str, int]
    input_sizes: dict[str, int]
    network_input_size: int | None

    @property
    def stride_groups(self) -> dict[str, int]:
        """Group of each weight: rank of ``round(log2(network input size / input size))`` among all.

        0 is the finest. Linear layers, and layers that the pass does not call, are in the coarsest group.
        """
        octaves = {
            name: round(math.log2(self.network_input_size / size))
            for name, size in self.input_sizes.items()
            if self.network_input_size
        }
        ranks = {octave: rank for rank, octave in enumerate(sorted(set(octaves.values())))}
        coarsest = max(len(ranks) - 1, 0)
        return {name: ranks[octaves[name]] if name in octaves else coarsest for name in self.num_macs}


class _Recorder(TorchFunctionMode):
    """Collects uses of weights during the pass, by layers and by functions that are handed a weight.

    A call of a layer is usually seen twice, as a layer and as a function. Layers that compute their weight
    (weight standardisation) are seen as layers only, models that take a layer's weight and call the function
    themselves (torchvision's Swin) as functions only: of the two counts of a weight the higher one is right.
    """

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        super().__init__()
        self._names = {(id(module), key): weight.name for weight in weights for module, key in weight.holders}
        self._names_of_tensors = {id(weight.tensor): weight.name for weight in weights if weight.is_parameter}
        self._by_layers: Counter[str] = Counter()
        self._by_functions: Counter[str] = Counter()
        self.input_sizes: dict[str, int] = {}
        self.network_input_size: int | None = None
        self.batch_size: int | None = None

    @property
    def num_macs(self) -> dict[str, int]:
        """Multiply-accumulates of every weight, over the whole batch."""
        return {name: max(self._by_layers[name], self._by_functions[name]) for name in self._names.values()}

    def record_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Forward hook of a convolution or linear layer."""
        name, weight = self._names[id(module), "weight"], module.weight
        assert isinstance(weight, Tensor)
        (inputs, *_) = (*args, *kwargs.values())
        if isinstance(inputs, Tensor) and isinstance(output, Tensor):  # subclasses may take and return anything
            num_spatial, is_transposed = num_dims(module) - 2, isinstance(module, TRANSPOSED)
            self._record(self._by_layers, name, weight, inputs, output, num_spatial, is_transposed)

    def record_attention(
        self, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        """Forward hook of an attention module, which uses its output layer without calling it."""
        query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(_ATTENTION_INPUTS))
        if self.batch_size is None:
            self.batch_size = query.shape[0 if module.batch_first else 1] if query.ndim == 3 else 1
        num_macs = [inputs.numel() * module.embed_dim for inputs in (query, key, value)]
        for attribute, count in zip(ATTENTION_PROJECTIONS, (sum(num_macs), *num_macs), strict=True):
            if (id(module), attribute) in self._names:
                self._by_layers[self._names[id(module), attribute]] += count
        if (id(module.out_proj), "weight") in self._names:
            self._by_layers[self._names[id(module.out_proj), "weight"]] += num_macs[0]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every function of torch."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _FUNCTIONS:
            inputs, weight = (args[i] if i < len(args) else kwargs[key] for i, key in enumerate(("input", "weight")))
            name = self._names_of_tensors.get(id(weight))
            if name is not None:
                self._record(self._by_functions, name, weight, inputs, output, weight.ndim - 2, _FUNCTIONS[func])
        return output

    def _record(
        self,
        counts: Counter[str],
        name: str,
        weight: Tensor,
        inputs: Tensor,
        output: Tensor,
        num_spatial: int,
        is_transposed: bool,
    ) -> None:
        """Count a call of a convolution or, without spatial dimensions, of a linear layer."""
        if self.batch_size is None:
            is_batched = inputs.ndim > (num_spatial + 1 if num_spatial else 1)
            self.batch_size = inputs.shape[0] if is_batched else 1
        # Every weight of an output channel is used once per output value (transposed: of an input channel,
        # input value).
        filter_shape = weight.shape[1:] if num_spatial else weight.shape[-1:]  # subclasses may hold several matrices
        counts[name] += (inputs if is_transposed else output).numel() * math.prod(filter_shape)
        if num_spatial:
            size = max(inputs.shape[-num_spatial:])
            self.network_input_size = self.network_input_size or size
            self.input_sizes[name] = max(size, self.input_sizes.get(name, 0))


@torch.no_grad()
def profile_model(
    model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None = None
) -> Profile:
    """Run `model` once on `example_inputs` in eval mode and measure its convolutions, linear layers and attention.

    Training flags, hooks and random state are as before afterwards. The batch size is taken from the first
    layer called.

    Args:
        model: any module.
        example_inputs: positional arguments of its forward.
        run: called in the place of the forward, for models whose forward leaves layers out.

    Raises:
        ConfigError: the forward pass fails on these inputs.
    """
    weights = find_weights(model)
    recorder = _Recorder(weights)
    with ExitStack() as stack:
        for module in {id(module): module for weight in weights for module in weight.modules}.values():
            is_attention = isinstance(module, nn.MultiheadAttention)
            hook: Callable[..., None] = recorder.record_attention if is_attention else recorder.record_layer
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        stack.enter_context(recorder)
        run_once(model, example_inputs, run)
    num_macs = {name: total // (recorder.batch_size or 1) for name, total in recorder.num_macs.items()}
    return Profile(num_macs, recorder.input_sizes, recorder.network_input_size)


def run_once(model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None = None) -> None:
    """Run `model` in eval mode, as it is without torch.compile, and leave flags and random state as they were.

    Raises:
        ConfigError: the forward pass fails on these inputs.
    """
    plain = unwrap(model)
    with undisturbed(plain):
        try:
            (run or plain)(*example_inputs)
        except Exception as error:  # whatever the model of a user raises
            raise ConfigError(
                "example_inputs: expected inputs that the model's forward accepts, "
                f"got {type(error).__name__}: {error}. Correct sparsity.input_shape, or pass example_inputs."
            ) from error
