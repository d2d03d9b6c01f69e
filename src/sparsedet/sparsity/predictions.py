"""Which layers give the outputs of a model: those whose own output no other layer reads."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparsedet.common.errors import ConfigError, TargetMatchError
from sparsedet.sparsity.distributed import is_sharded
from sparsedet.sparsity.profile import run_once
from sparsedet.sparsity.weights import Weight, find_weights


def find_predictions(
    model: nn.Module, example_inputs: tuple[Any, ...], run: Callable[..., object] | None = None
) -> frozenset[str]:
    """Return the names of the weights of the prediction layers, the ``preset:prediction`` of targets.

    A prediction layer is a layer called by the forward pass (in eval mode) whose output no other convolution,
    linear layer or attention reads, directly or through operations that pass a gradient. The region proposals
    of Faster R-CNN are detached before the box head reads them: its layers are prediction layers too, as they
    should be. Layers that the pass does not call are not.

    The model is run once more than for its profile, with every layer's output cut off from what made it and
    marked; the marks that the inputs of the other layers lead back to are those of layers that are read.
    Nothing of the model changes.

    Args:
        model: any module.
        example_inputs: positional arguments of its forward.
        run: called in the place of the forward, for models whose forward leaves layers out.

    Raises:
        TargetMatchError: layers run where no gradient is kept, so that it cannot be told.
        ConfigError: the forward pass fails on these inputs, or the model is sharded (FSDP2).
    """
    weights = find_weights(model)
    for weight in weights:
        if is_sharded(weight.tensor):  # a gradient inside of a forward pass shards again what the pass still needs
            raise ConfigError(
                f"model: expected one that is not sharded yet (FSDP2), to find its prediction layers, got "
                f"'{weight.name}' in parts. Make the sparsifier before fully_shard(model), and attach optimizers after."
            )
    called, read = set[str](), set[str]()
    blind: list[str] = []

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            blind.append(name)
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                read.update(_marked(value))

    def after(name: str, output: Any) -> Any:
        called.add(name)
        return tree_map(lambda value: _mark(value, name), output)

    with ExitStack() as stack, torch.enable_grad():
        for name, module in _layers(weights):
            pre_hook = module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: before(name, args, kwargs), with_kwargs=True
            )
            hook = module.register_forward_hook(lambda _, __, output, name=name: after(name, output))
            stack.callback(pre_hook.remove)
            stack.callback(hook.remove)
        run_once(model, example_inputs, run)
    if blind:
        raise TargetMatchError(
            f"preset:prediction: expected a forward pass that keeps gradients, got '{blind[0]}' and "
            f"{len(blind) - 1} more calls without. Name the prediction layers."
        )
    return frozenset(called - read)


def _layers(weights: tuple[Weight, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every layer with the name of the weight that makes its output."""
    names = {id(module): weight.name for weight in weights for module in weight.modules}
    for module in {id(module): module for weight in weights for module in weight.modules}.values():
        if isinstance(module, nn.MultiheadAttention):
            yield names.get(id(module.out_proj), names[id(module)]), module
        else:
            yield names[id(module)], module


class _Mark(torch.autograd.Function):
    """Identity that leaves the name of a layer in the graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, name: str) -> Tensor:
        ctx.layer, ctx.value = name, value
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return gradient, None


def _mark(value: Any, name: str) -> Any:
    is_floating = isinstance(value, Tensor) and value.is_floating_point()
    return _Mark.apply(value.detach().requires_grad_(), name) if is_floating else value


def _marked(value: Tensor) -> set[str]:
    """Return the names of the layers from which `value` was made so that a gradient gets back to them."""
    marks = list(_marks(value))
    if not marks:
        return set()
    outputs = [mark.value for mark in marks]
    try:
        # An edge of the graph alone does not say it: pooled regions have one to their boxes, but no gradient.
        gradients = torch.autograd.grad(value, outputs, torch.ones_like(value), retain_graph=True, allow_unused=True)
    except RuntimeError:  # an operation without a derivative, or a tensor changed since
        return {mark.layer for mark in marks}
    return {mark.layer for mark, gradient in zip(marks, gradients, strict=True) if gradient is not None}


def _marks(value: Tensor) -> Iterator[Any]:
    """Yield the nodes of the marks that the graph of `value` leads back to."""
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "layer"):
            yield node
        else:
            left.extend(next_node for next_node, _ in node.next_functions)
