"""The weights of a model that can be pruned, under the names of the plain model.

These are the weights of all convolutions (1d, 2d, 3d, transposed), linear layers and attention projections
(``in_proj_weight``, or ``q_proj_weight`` and so on, of `torch.nn.MultiheadAttention`, whose ``out_proj`` is a
linear layer), subclasses included. A wrapper of DistributedDataParallel, DataParallel, AveragedModel or
torch.compile, around the model or around a part of it, adds nothing to the names.

Weights are found anew wherever they are needed, so that a layer may get another parameter in the meantime.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparsedet.common.errors import ConfigError

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.optim.swa_utils.AveragedModel)


@dataclass(frozen=True)
class Weight:
    """A weight that can be pruned.

    Attributes:
        names: full parameter names, more than one if layers share it; the first is the one in use.
        holders: the layers that hold it, each with the name of its attribute.
        others: names of parameters of other kinds of modules that are the same tensor, such as a tied
            embedding.
    """

    names: tuple[str, ...]
    holders: tuple[tuple[nn.Module, str], ...]
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Full parameter name."""
        return self.names[0]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The layers that hold it."""
        return tuple(module for module, _ in self.holders)

    @property
    def tensor(self) -> Tensor:
        """The weight as the layer holds it now, shape (out, in/groups, *kernel) (transposed: (in, out/groups, …))."""
        module, attribute = self.holders[0]
        weight = getattr(module, attribute)
        assert isinstance(weight, Tensor)
        return weight

    @property
    def layer(self) -> nn.Module:
        """The first of the layers; for an attention projection a linear layer of the same weight."""
        module, attribute = self.holders[0]
        if attribute == "weight":
            return module
        stand_in = nn.Linear(1, 1, bias=False, device="meta")
        stand_in.out_features, stand_in.in_features = self.tensor.shape
        stand_in.weight = nn.Parameter(self.tensor, requires_grad=False)
        return stand_in

    @property
    def is_parameter(self) -> bool:
        """Whether the layer holds it as a plain parameter, not computed by a parametrization or hook."""
        module, attribute = self.holders[0]
        return attribute in module._parameters

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(name.rpartition(".")[0] for name in self.names)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain model inside wrappers of DDP, averaging and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_weights(model: nn.Module) -> tuple[Weight, ...]:
    """Return all weights that can be pruned, in the order of the model.

    Layers that hold the same parameter, or parameters that are the same memory (``b.weight.data =
    a.weight.data``), share one weight.

    Raises:
        ConfigError: a weight has no shape yet (lazy), or is quantised or sparsely stored.
    """
    found: dict[Hashable, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    parameters: dict[str, Hashable] = {}
    for prefix, module in _modules(model):
        own = {name: value for name, value in module._parameters.items() if value is not None}
        parameters |= {prefix + name: _identity(value) for name, value in own.items()}
        for attribute in _attributes(prefix, module):
            weight = getattr(module, attribute)
            _check(prefix + attribute, weight)
            key = _identity(weight) if attribute in own else (id(module), attribute)
            names, holders = found.setdefault(key, ([], []))
            names.append(prefix + attribute)
            if (module, attribute) not in holders:
                holders.append((module, attribute))
    held = {name for names, _ in found.values() for name in names}
    others: dict[Hashable, list[str]] = {}
    for name, key in parameters.items():
        if name not in held:
            others.setdefault(key, []).append(name)
    return tuple(
        Weight(tuple(names), tuple(holders), tuple(others.get(key, ()))) for key, (names, holders) in found.items()
    )


def _modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module as often as it is registered, with the start of the names of its parameters."""
    model = unwrap(model)
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None:
            yield from _modules(child, f"{prefix}{name}.")


def _attributes(prefix: str, module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that `module` itself holds."""
    if any(base.__name__ == "WeightedQuantizedModule" for base in type(module).__mro__):  # of torch.ao
        raise _refusal(prefix + "weight", f"the quantised layer {type(module).__name__}")
    names: tuple[str, ...] = ()
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = ATTENTION_PROJECTIONS
    return tuple(name for name in names if isinstance(getattr(module, name, None), Tensor))


def _check(name: str, weight: Tensor) -> None:
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ConfigError(f"model: expected weights with a shape, got the lazy layer '{name}'. Run it once first.")
    if weight.layout != torch.strided:
        raise _refusal(name, f"layout {weight.layout}")
    is_number = (weight.is_floating_point() and weight.element_size() > 1) or weight.is_complex()
    if weight.is_quantized or not is_number:
        raise _refusal(name, f"dtype {weight.dtype}")
    is_distributed = any(base.__name__ == "DTensor" for base in type(weight).__mro__)
    if is_traceable_wrapper_subclass(weight) and not is_distributed:
        raise _refusal(name, f"class {type(weight).__name__}")


def _refusal(name: str, got: str) -> ConfigError:
    return ConfigError(
        f"model: expected dense floating-point weights, got '{name}' of {got}. "
        "Prune the model before it is quantised or compressed."
    )


def _identity(tensor: Tensor) -> Hashable:
    """Return what two parameters have in common that are the same memory."""
    is_strided = type(tensor) is nn.Parameter and tensor.layout == torch.strided
    has_memory = is_strided and tensor.numel() > 0 and not tensor.is_meta
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if has_memory else id(tensor)
