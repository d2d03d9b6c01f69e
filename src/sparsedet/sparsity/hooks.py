"""What reaches from a sparsifier into a model and its optimizers: hooks that keep masked entries at zero."""

from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.masked import MaskedTensors


class Hooks:
    """Hooks on optimizers, gradients and the loading of weights; copies of a model or an optimizer have none.

    Args:
        masked: what they keep at zero.
    """

    def __init__(self, masked: MaskedTensors) -> None:
        self._masked = masked
        self._steps: WeakKeyDictionary[torch.optim.Optimizer, list[RemovableHandle]] = WeakKeyDictionary()
        self._gradients = WeakTensorKeyDictionary()
        self._frozen: set[str] = set()
        self._loads: list[RemovableHandle] = []

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Those that are attached."""
        return tuple(self._steps)

    def __reduce__(self) -> tuple[Any, ...]:
        """What is copied or pickled together with its optimizers acts on their copies."""
        return _attached, (self._masked, self.optimizers, bool(self._loads))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Act on every step of `optimizer` and on the gradients that it uses; once, however often it is called."""
        masked = self._masked
        if optimizer not in self._steps:
            handles = [optimizer.register_step_post_hook(lambda *_: _after_step(masked))]
            if masked.keeps_values:
                handles.append(optimizer.register_step_pre_hook(lambda *call: _before_step(masked, *call)))
            self._steps[optimizer] = handles
        self.watch_gradients()
        self.watch_loading()

    def watch_gradients(self) -> None:
        """Act on the gradients of weights that have any by now; frozen ones have none."""
        masked = self._masked
        self._frozen.clear()
        for name in (*masked.weights, *masked.followers):
            tensor = masked.tensor(name)
            if not tensor.requires_grad:
                self._frozen.add(name)
            elif tensor not in self._gradients:
                register: Any = tensor.register_post_accumulate_grad_hook
                self._gradients[tensor] = register(_after_backward(masked, name))

    def has_thawed(self) -> bool:
        """Tell whether a weight that was frozen has gradients now."""
        return any(self._masked.tensor(name).requires_grad for name in self._frozen)

    def watch_loading(self) -> None:
        """Put zeros back whenever weights are loaded into one of the layers, or into a model that holds it."""
        for name in self._masked.masks if not self._loads else ():
            for module in self._masked.modules(name):
                register: Any = module.register_load_state_dict_post_hook
                self._loads.append(register(_AfterLoading(self._masked, name)))

    def remove(self) -> None:
        """Take every hook away."""
        gradients: Any = self._gradients
        steps = (handle for handles in self._steps.values() for handle in handles)
        for handle in (*gradients.values(), *steps, *self._loads):
            handle.remove()
        self._steps.clear()
        self._gradients.clear()
        self._frozen.clear()
        self._loads = []


def _attached(masked: MaskedTensors, optimizers: tuple[torch.optim.Optimizer, ...], loads: bool) -> Hooks:
    hooks = Hooks(masked)
    for optimizer in optimizers:
        hooks.attach(optimizer)
    if loads:
        hooks.watch_loading()
    return hooks


def _before_step(
    masked: MaskedTensors, _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is not None:
        raise ConfigError(
            "keep_pruned_values: expected an optimizer that steps without a closure, since the weights are dense while "
            "it steps, got one. Compute the loss before step(), or use fixed masks."
        )
    masked.restore_()


def _after_step(masked: MaskedTensors) -> None:
    if masked.keeps_values:
        masked.hold_()
    masked.apply_after_step_()


def _after_backward(masked: MaskedTensors, name: str) -> Any:
    reference = ref(masked)  # a parameter shall not keep the masks alive, which hold the model

    def hook(parameter: Tensor) -> None:
        there = reference()
        gradient = parameter.grad
        if there is not None and gradient is not None:
            there.take_gradient_(name, gradient)

    return hook


class _AfterLoading:
    """Hook of a layer; what a copy or a pickle of the layer gets in its place does nothing and needs no sparsedet."""

    def __init__(self, masked: MaskedTensors, name: str) -> None:
        self._masked = ref(masked)
        self._name = name

    def __call__(self, module: nn.Module, incompatible_keys: object) -> None:
        masked = self._masked()
        if masked is not None:
            masked.apply_after_loading_(self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments, returns None
