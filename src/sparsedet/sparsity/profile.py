"""One forward pass that measures MACs and input size of every conv and linear weight."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.patterns.n_m import TRANSPOSED
from sparsedet.sparsity.targets import Weight, find_weights, unwrap


@dataclass(frozen=True)
class Profile:
    """What one forward pass does with each conv and linear weight.

    Attributes:
        num_macs: multiply-accumulates by parameter name, over all calls, for one image; without padding or
            bias being treated apart (1 MAC = 2 FLOPs).
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


class _Recorder:
    """Collects calls of layers during the pass."""

    def __init__(self) -> None:
        self.num_macs: dict[str, int] = {}
        self.input_sizes: dict[str, int] = {}
        self.network_input_size: int | None = None
        self.batch_size: int | None = None

    def record(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Forward hook of the layer that holds the weight `name`."""
        assert isinstance(module.weight, Tensor)
        inputs: Tensor = args[0] if args else kwargs["input"]
        num_dims = module.weight.ndim - 2  # spatial ones; 0: linear
        if self.batch_size is None:
            is_batched = inputs.ndim > (num_dims + 1 if num_dims else 1)
            self.batch_size = inputs.shape[0] if is_batched else 1
        # Every weight of an output channel is used once per output value (transposed: of an input channel,
        # input value).
        values = inputs if isinstance(module, TRANSPOSED) else output
        self.num_macs[name] += values.numel() * module.weight[0].numel()
        if num_dims:
            size = max(inputs.shape[-num_dims:])
            self.network_input_size = self.network_input_size or size
            self.input_sizes[name] = max(size, self.input_sizes.get(name, 0))


@torch.no_grad()
def profile_model(
    model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None = None
) -> Profile:
    """Run `model` once on `example_inputs` in eval mode and measure its conv and linear layers.

    Training flags, hooks and random state are as before afterwards. The batch size is taken from the first
    layer called.

    Args:
        model: any module.
        example_inputs: positional arguments of its forward.
        run: called in the place of the forward, for models whose forward leaves layers out.

    Raises:
        ConfigError: the forward pass fails on these inputs.
    """
    recorder = _Recorder()
    weights = find_weights(model)
    recorder.num_macs = {weight.name: 0 for weight in weights}
    plain = unwrap(model)
    with _observed(weights, recorder), _in_eval_mode(plain), torch.random.fork_rng(_cuda_devices(plain)):
        try:
            (run or plain)(*example_inputs)
        except Exception as error:  # whatever the model of a user raises
            raise ConfigError(
                "example_inputs: expected inputs that the model's forward accepts, "
                f"got {type(error).__name__}: {error}. Correct sparsity.input_shape, or pass example_inputs."
            ) from error
    batch_size = recorder.batch_size or 1
    num_macs = {name: total // batch_size for name, total in recorder.num_macs.items()}
    return Profile(num_macs, recorder.input_sizes, recorder.network_input_size)


@contextmanager
def _observed(weights: tuple[Weight, ...], recorder: _Recorder) -> Iterator[None]:
    handles = [
        module.register_forward_hook(partial(recorder.record, weight.name), with_kwargs=True)
        for weight in weights
        for module in weight.modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {parameter.device for parameter in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
