"""What the layers of a model read, as rows of the matrix that their weight is multiplied with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsedet.common.errors import ConfigError, UnsupportedShapeError
from sparsedet.sparsity.calibration import sum_of_counts
from sparsedet.sparsity.distributed import reshard
from sparsedet.sparsity.weights import ATTENTION_PROJECTIONS, CONVOLUTIONS, TRANSPOSED, Weight, num_dims

Record = Callable[[str, int, Tensor], None]
"""Called with the name of a weight, the index of the first group, and rows: float32, shape (groups, rows, features)."""

_Records = dict[tuple[int, str], Callable[[int, Tensor], None]]
"""By id of a module and name of its attribute: what is called with the index of its first group, and rows."""


def num_groups(weight: Weight) -> int:
    """Return how many parts of a weight's output channels, equal in size, read features of their own."""
    return math.lcm(*(_num_groups(module, key) for module, key in weight.holders))


def _num_groups(module: nn.Module, attribute: str) -> int:
    if attribute == "in_proj_weight":
        return 3  # query, key, value
    return module.groups if isinstance(module, CONVOLUTIONS) and not isinstance(module, TRANSPOSED) else 1


@contextmanager
def watch_inputs(model: nn.Module, weights: Sequence[Weight], record: Record) -> Iterator[None]:
    """Hand the inputs of all calls of the layers that hold `weights` to `record`.

    The features of a convolution are the values under its kernel, in the order (input channel, *kernel); there is
    one row for each output position (transposed: the input channels, one row for each input position). Rows come in
    parts of at most one image. A shared layer is seen at every call; layers that share a weight may have other groups.

    Raises:
        UnsupportedShapeError: a subclass has given its weight dimensions of its own, or a transposed convolution shares
            it with a layer that is none.
    """
    records: _Records = {}
    for weight in weights:
        _check_layout(weight)
        for module, key in weight.holders:
            share = num_groups(weight) // _num_groups(module, key)
            records[id(module), key] = partial(_spread, record, weight.name, share)
    with ExitStack() as stack:
        for module in model.modules():
            hook: Callable[..., None] | None = None
            if isinstance(module, nn.MultiheadAttention):
                hook = _attention_hook(records)
            elif (id(module), "weight") in records:
                hook = _layer_hook(records[id(module), "weight"])
            if hook is not None:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(reshard, model)
        yield


def _spread(record: Record, name: str, share: int, group: int, rows: Tensor) -> None:
    """Record rows of groups each of which is `share` groups of the weight."""
    record(name, group * share, rows if share == 1 else rows.repeat_interleave(share, 0))


def _check_layout(weight: Weight) -> None:
    expected, shape = num_dims(weight.layer), tuple(weight.tensor.shape)
    if len(shape) != expected:
        raise UnsupportedShapeError(
            f"sparsity.criterion: expected weights of {expected} dimensions for this kind of layer, got "
            f"'{weight.name}' of shape {shape}. Use 'magnitude', or add it to targets.exclude."
        )
    if weight.is_transposed and not all(isinstance(module, TRANSPOSED) for module in weight.modules):
        raise UnsupportedShapeError(
            "sparsity.criterion: expected weights that transposed convolutions share with none but their like, got "
            f"{list(weight.names)}. Use 'magnitude', or add them to targets.exclude."
        )


def check_called(num_calls: Mapping[str, int], criterion: str) -> None:
    """Check that some process saw a call of a layer of every weight.

    Args:
        num_calls: of the layers of each weight, in this process.
        criterion: its name, for the message.

    Raises:
        ConfigError: some were not called; the message names all of them.
    """
    missing = [name for name, count in num_calls.items() if sum_of_counts(count) == 0]
    if missing:
        raise ConfigError(
            f"sparsity.criterion: expected passes that call the layer of every weight that is pruned, which "
            f"'{criterion}' watches, got none that calls those of {missing}. Models such as torchvision's Swin hand "
            "weights to functions instead: add these to sparsity.targets.exclude, or use the criterion 'magnitude'. "
            "Layers that only training calls have to be called by `run` of the calibration. With compensate: false the "
            "scores of what is left out count too."
        )


def check_finite(name: str, sums: Tensor) -> None:
    """Check what the inputs of the layer of the weight `name` add up to.

    Raises:
        ConfigError: they were not finite.
    """
    if not sums.isfinite().all():
        raise ConfigError(
            f"calibration: expected finite inputs of every layer, got inf or NaN at '{name}'. Look at the data, and "
            "run the model in float32."
        )


def _layer_hook(record: Callable[[int, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (inputs, *_) = (*args, *kwargs.values())
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                f"sparsity.criterion: expected layers that are called with a tensor, got {type(inputs).__name__} for a "
                f"{type(module).__name__}. Use 'magnitude', or add 'type:{type(module).__name__}' to targets.exclude."
            )
        for rows in _rows(module, _plain(inputs)):
            record(0, rows)

    return hook


def _attention_hook(records: _Records) -> Callable[..., None]:
    """Return a hook that sees the inputs of all projections, none of which is called as a layer."""

    def hook(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [args[i] if i < len(args) else kwargs[key] for i, key in enumerate(("query", "key", "value"))]
        for attribute, tensors in zip(ATTENTION_PROJECTIONS, (inputs, *([tensor] for tensor in inputs)), strict=True):
            record = records.get((id(module), attribute))
            if record is None:
                continue
            for group, tensor in enumerate(tensors):
                record(group, _plain(tensor).flatten(0, -2)[None].float())
        record = records.get((id(module.out_proj), "weight"))
        if record is not None:
            attended = _plain(_before_out_proj(module, args, kwargs))
            record(0, attended.flatten(0, -2)[None].float())

    return hook


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor without gradient; one of sequences of different lengths padded with zeros, which add nothing."""
    return (tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor).detach()


def _before_out_proj(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what the output projection reads: the output with the identity in its place."""
    projection = module.out_proj
    # Torch's fused attention, which serves eval mode without gradients, wants a bias here.
    identity = nn.Linear(projection.in_features, projection.in_features).to(projection.weight)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(projection.in_features))
        identity.bias.zero_()
    module.out_proj = identity  # type: ignore[assignment]
    try:
        output: Tensor = module.forward(*args, **kwargs)[0]
    finally:
        module.out_proj = projection
    return output


def _rows(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    if isinstance(module, nn.Linear):
        yield inputs.reshape(1, -1, inputs.shape[-1]).float()
        return
    assert isinstance(module, CONVOLUTIONS)
    num_dims = module.weight.ndim - 2
    for image in inputs if inputs.ndim > num_dims + 1 else inputs[None]:
        if isinstance(module, TRANSPOSED):
            yield image.flatten(1).T[None].float()
        else:
            yield _patches(module, image.float())


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, image: Tensor) -> Tensor:
    """Return what the kernel covers at each output position of an image (I, *size): (groups, positions, features)."""
    num_dims = len(module.kernel_size)
    extents = [size * step - step + 1 for size, step in zip(module.kernel_size, module.dilation, strict=True)]
    if isinstance(module.padding, str):
        around = [((extent - 1) // 2, extent // 2) if module.padding == "same" else (0, 0) for extent in extents]
    else:
        around = [(size, size) for size in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    patches = functional.pad(image[None], [size for sizes in reversed(around) for size in sizes], mode)[0]
    for dim, extent in enumerate(extents, start=1):
        patches = patches.unfold(dim, extent, module.stride[dim - 1])[..., :: module.dilation[dim - 1]]
    patches = patches.reshape(module.groups, -1, *patches.shape[1:])  # (groups, I/groups, *positions, *kernel)
    positions, kernels = range(2, 2 + num_dims), range(2 + num_dims, 2 + 2 * num_dims)
    return patches.permute(0, *positions, 1, *kernels).flatten(1, num_dims).flatten(2)
