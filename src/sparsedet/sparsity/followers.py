"""What goes with a dead output channel: the bias of its layer, and weight and bias of the norm behind it.

A filter of zeros alone does not give zeros: its bias stays, and a batch norm turns even a constant zero into its own
bias minus the scaled running mean. Which norm reads a layer is seen in one forward pass (names and the order of
registration do not say it): the one that is handed the very tensor that the layer returned, unchanged since.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.weak import WeakTensorKeyDictionary

from sparsedet.sparsity.distributed import whole
from sparsedet.sparsity.profile import run_once
from sparsedet.sparsity.weights import Weight, find_weights, plain_modules, unwrap

_BIASES = {"weight": "bias", "in_proj_weight": "in_proj_bias"}
_AFFINE = ("weight", "bias")
_ELSEWHERE = ""


@dataclass(frozen=True)
class Follower:
    """A vector with an entry for each output channel, which is to be 0 where the channel is dead.

    Attributes:
        name: full name of the parameter or buffer.
        module: what holds it.
        attribute: its name there.
        weights: names of the weights that give the channels; one is dead when its filters in all of them are.
    """

    name: str
    module: nn.Module
    attribute: str
    weights: tuple[str, ...]

    @property
    def tensor(self) -> Tensor:
        """The vector as the module holds it now."""
        vector = getattr(self.module, self.attribute)
        assert isinstance(vector, Tensor)
        return vector

    def keep(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return which entries stay, by the masks of the weights (True = keep): bool, shape (channels,)."""
        return torch.stack([masks[name].flatten(1).any(1) for name in self.weights]).any(0)


@dataclass(frozen=True)
class DeadChannels:
    """Dead output channels of one layer.

    Attributes:
        name: full name of its weight.
        num_channels: number of its output channels.
        num_dead: those whose filter is zero.
        zeroed: names of the parameters and buffers that are zeroed with them. If there are none, or only a bias,
            a norm that reads a sum, or what is not seen as a norm, may still make a constant of a dead channel.
    """

    name: str
    num_channels: int
    num_dead: int
    zeroed: tuple[str, ...]


def count_dead_channels(weights: Iterable[Weight], followers: Collection[Follower]) -> tuple[DeadChannels, ...]:
    """Count the filters of `weights` that are zero, whatever the pattern that made them so."""
    return tuple(
        DeadChannels(
            name=weight.name,
            num_channels=weight.tensor.shape[0],
            num_dead=int((whole(weight.tensor).detach().flatten(1) == 0).all(1).sum()),
            zeroed=tuple(follower.name for follower in followers if weight.name in follower.weights),
        )
        for weight in weights
    )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under the names that they have in the plain model."""
    modules = tuple(plain_modules(model))
    return {
        prefix + name: tensor
        for held in (nn.Module.named_parameters, nn.Module.named_buffers)
        for prefix, module in modules
        for name, tensor in held(module, recurse=False, remove_duplicate=False)
    }


@torch.no_grad()
def find_followers(
    model: nn.Module,
    chosen: Collection[str],
    example_inputs: tuple[Any, ...],
    run: Callable[..., object] | None = None,
) -> tuple[Follower, ...]:
    """Return what goes with the dead output channels of some weights.

    Norms are batch, instance and group norms, frozen batch norms included. One that in this pass also reads
    something else than the output of a chosen layer, such as a sum, keeps its weight and bias.

    Args:
        model: any module; nothing in it changes.
        chosen: full names of the weights whose filters may go.
        example_inputs: positional arguments of the model's forward.
        run: called in the place of the forward, for models whose forward leaves layers out.

    Raises:
        ConfigError: the forward pass fails on these inputs.
    """
    plain = unwrap(model)
    weights = find_weights(plain)
    prefixes: dict[nn.Module, str] = {}
    for prefix, module in plain_modules(plain):
        prefixes.setdefault(module, prefix)
    followers = [
        Follower(prefixes[module] + _BIASES[attribute], module, _BIASES[attribute], (weight.name,))
        for weight in weights
        if weight.name in chosen
        for module, attribute in weight.holders
        if isinstance(getattr(module, _BIASES.get(attribute, ""), None), Tensor)
    ]
    readers = _Readers()
    with ExitStack() as stack:
        for weight in weights:
            for module, attribute in weight.holders:
                if attribute == "weight":
                    hook = module.register_forward_hook(readers.made_by(weight.name, weight.tensor.ndim == 2))
                    stack.callback(hook.remove)
        for module in plain.modules():
            if _is_norm(module):
                stack.callback(module.register_forward_pre_hook(readers.read, with_kwargs=True).remove)
        run_once(model, example_inputs, run)
    for module, sources in readers.sources.items():
        if sources <= set(chosen):
            followers += [
                Follower(prefixes[module] + attribute, module, attribute, tuple(sorted(sources)))
                for attribute in _AFFINE
                if isinstance(getattr(module, attribute), Tensor)
            ]
    return tuple(followers)


class _Readers:
    """Which norm reads the output of which layers, in a running pass."""

    def __init__(self) -> None:
        self.sources: dict[nn.Module, set[str]] = {}
        """Names of the weights whose layers' outputs a norm read; `_ELSEWHERE` for anything else."""
        self._made: MutableMapping[Tensor, tuple[str, int]] = WeakTensorKeyDictionary()

    def made_by(self, name: str, is_linear: bool) -> Callable[..., None]:
        """Return a forward hook for a layer of the weight `name`."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Dimension 1 are the channels, for a norm and for convolutions.
            if isinstance(output, Tensor) and (not is_linear or output.ndim == 2):
                self._made[output] = (name, output._version)

        return hook

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a norm."""
        (inputs, *_) = (*args, *kwargs.values())
        name, version = self._made.get(inputs, (_ELSEWHERE, 0))
        is_unchanged = version == inputs._version
        self.sources.setdefault(module, set()).add(name if is_unchanged else _ELSEWHERE)


def _is_norm(module: nn.Module) -> bool:
    is_frozen = {"running_mean", "running_var", *_AFFINE} <= module._buffers.keys()  # torchvision's FrozenBatchNorm2d
    return is_frozen or isinstance(module, _NormBase | nn.GroupNorm)
