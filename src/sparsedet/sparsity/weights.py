"""The weights of a model that can be pruned, under the names of the plain model.

These are the weights of all convolutions (1d, 2d, 3d, transposed), linear layers and attention projections
(``in_proj_weight``, or ``q_proj_weight`` and so on, of `torch.nn.MultiheadAttention`, whose ``out_proj`` is a
linear layer), subclasses included. A wrapper of DistributedDataParallel, DataParallel, AveragedModel or
torch.compile, around the model or around a part of it, adds nothing to the names.

Weights are found anew wherever they are needed, so that a layer may get another parameter in the meantime.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparsedet.common.errors import ConfigError
from sparsedet.common.modes import in_eval_mode

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
        others: names of parameters that hold it, or a part of it, in another way: those of other kinds of modules,
            such as a tied embedding, and weights that are the same memory in another shape or order.
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
        weight = _held(*self.holders[0])
        assert isinstance(weight, Tensor)
        return weight

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers that hold it; for an attention projection a linear layer of the same weight."""
        return tuple(module if key == "weight" else self._stand_in() for module, key in self.holders)

    @property
    def layer(self) -> nn.Module:
        """The first of `layers`."""
        return self.layers[0]

    @property
    def is_transposed(self) -> bool:
        """Whether a transposed convolution is among the layers: input channels come first."""
        return any(isinstance(module, TRANSPOSED) for module in self.modules)

    def _stand_in(self) -> nn.Linear:
        linear = nn.Linear(1, 1, bias=False, device="meta")
        linear.out_features, linear.in_features = self.tensor.shape
        linear.weight = nn.Parameter(self.tensor, requires_grad=False)
        return linear

    @property
    def is_parameter(self) -> bool:
        """Whether the layer holds it as a parameter, not as a buffer or computed by a parametrization or hook."""
        module, attribute = self.holders[0]
        return attribute in module._parameters

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(name.rpartition(".")[0] for name in self.names)


def num_dims(layer: nn.Module) -> int:
    """Return how many dimensions the weight of such a layer has in torch: (out, in/groups, *kernel)."""
    return 2 + len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 2


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
        ConfigError: a weight has no shape yet (lazy), or is quantised, sparsely stored or part of a scripted module.
    """
    check_initialised(model)
    found: dict[Hashable, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    parameters: dict[str, Tensor] = {}
    for prefix, module in plain_modules(model):
        own = {name: value for name, value in module._parameters.items() if value is not None}
        parameters |= {prefix + name: value for name, value in own.items()}
        if isinstance(module, torch.jit.ScriptModule) and any(value.ndim > 1 for value in own.values()):
            raise ConfigError(  # it does not say which kind of layer it was
                f"model: expected layers of Python, got the scripted or traced '{prefix.removesuffix('.')}'. Prune the "
                "model before torch.jit."
            )
        for attribute, weight in _weights(prefix, module):
            _check(prefix + attribute, weight)
            key = _identity(weight) if attribute in own else (id(module), attribute)
            names, holders = found.setdefault(key, ([], []))
            names.append(prefix + attribute)
            if (module, attribute) not in holders:
                holders.append((module, attribute))
    held = {name for names, _ in found.values() for name in names}
    others: dict[Hashable, list[str]] = {}
    for name, parameter in parameters.items():
        if name not in held:
            others.setdefault(_identity(parameter), []).append(name)
    for name, other in _overlaps(parameters):
        others.setdefault(_identity(parameters[name]), []).append(other)
    return tuple(
        Weight(tuple(names), tuple(holders), tuple(others.get(key, ()))) for key, (names, holders) in found.items()
    )


def check_initialised(model: nn.Module) -> None:
    """Check that no parameter or buffer of `model` waits for a first input to get its shape.

    Raises:
        ConfigError: one does.
    """
    for prefix, module in plain_modules(model):
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and nn.parameter.is_lazy(value):
                raise ConfigError(
                    f"model: expected weights with a shape, got the lazy layer '{prefix}{name}'. Run it once first."
                )


def _held(module: nn.Module, attribute: str) -> object:
    """Return what `module` holds; a parametrization that computes it leaves no trace, as spectral norms would."""
    parametrizations = module._modules.get("parametrizations")
    if not isinstance(parametrizations, nn.ModuleDict) or attribute not in parametrizations:
        return getattr(module, attribute, None)
    with in_eval_mode(parametrizations[attribute]):
        return getattr(module, attribute)


def plain_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module but wrappers as often as it is registered, with the start of the names of its parameters.

    The names are those of the plain model.
    """
    model = unwrap(model)
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None:
            yield from plain_modules(child, f"{prefix}{name}.")


def _weights(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that `module` itself holds, with the names of their attributes."""
    if any(base.__name__ == "WeightedQuantizedModule" for base in type(module).__mro__):  # of torch.ao
        raise _refusal(prefix + "weight", f"the quantised layer {type(module).__name__}")
    names: tuple[str, ...] = ()
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = ATTENTION_PROJECTIONS
    for name in names:
        weight = _held(module, name)
        if isinstance(weight, Tensor):
            yield name, weight


def _check(name: str, weight: Tensor) -> None:
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
    return (*_place(tensor), tensor.shape, tensor.stride(), tensor.dtype) if _has_memory(tensor) else id(tensor)


def _has_memory(tensor: Tensor) -> bool:
    is_strided = type(tensor) is nn.Parameter and tensor.layout == torch.strided
    return is_strided and tensor.numel() > 0 and not tensor.is_meta


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.data_ptr()


def _overlaps(parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of any two parameters that share memory without being the same, in both orders."""
    spans = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + _num_bytes(tensor), name)
        for name, tensor in parameters.items()
        if _has_memory(tensor)
    )
    open_spans: list[tuple[str, int, str]] = []
    for device, start, end, name in spans:
        open_spans = [span for span in open_spans if span[0] == device and span[1] > start]
        for _, _, other in open_spans:
            if _identity(parameters[name]) != _identity(parameters[other]) and _meet(
                parameters[name], parameters[other]
            ):
                yield name, other
                yield other, name
        open_spans.append((device, end, name))


def _num_bytes(tensor: Tensor) -> int:
    """Return how many bytes lie from the first entry to the end of the last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def _meet(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors in one block of memory have an entry in common; columns of one matrix have none."""
    start = min(first.data_ptr(), second.data_ptr())
    end = max(tensor.data_ptr() + _num_bytes(tensor) for tensor in (first, second))
    is_taken = torch.zeros(end - start, dtype=torch.bool)
    views = [
        torch.as_strided(
            is_taken,
            (*tensor.shape, tensor.element_size()),
            (*(stride * tensor.element_size() for stride in tensor.stride()), 1),
            tensor.data_ptr() - start,
        )
        for tensor in (first, second)
    ]
    views[0].fill_(True)
    return bool(views[1].any())
