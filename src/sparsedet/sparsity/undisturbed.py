"""Passes through a model that leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sparsedet.common.modes import in_eval_mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; put back training flags, buffers and torch's random state afterwards.

    Random numbers inside are the same at every call. Compiled parts run without torch.compile: they would not call
    hooks that were added later.

    Args:
        model: the plain module, see `sparsedet.sparsity.weights.unwrap`.
    """
    buffers = [
        (buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_inference()
    ]
    with (
        torch.random.fork_rng(_cuda_devices(model)),
        torch.compiler.set_stance("force_eager"),
        in_eval_mode(model),
    ):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {parameter.device for parameter in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
