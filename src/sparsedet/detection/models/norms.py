"""Normalisation layers and the convolutions that carry them."""

from collections import OrderedDict
from functools import cache
from typing import Any, Literal, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError

BackboneNorm = Literal["batch_norm", "batch_norm_fixed_stats", "sync_batch_norm"]
Norm = Literal["batch_norm", "sync_batch_norm", "none"]


class FixedStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics, while weight and bias are trained.

    Unlike torchvision's FrozenBatchNorm2d, whose weight and bias are frozen too.
    Source: United-Perception's ``freeze_bn`` (up_semantics §2.3).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` says."""
        return super().train(False)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm whose statistics are those of the images of several processes.

    torch's own on GPUs; on CPUs, which torch does not support, the same by two all-reduces. Alone in its group,
    or outside a distributed run, it is a plain batch norm.

    Args:
        num_features: channels.
        group_size: consecutive ranks that share statistics; None, or more than there are: all of them.
    """

    def __init__(self, num_features: int, group_size: int | None = None) -> None:
        super().__init__(num_features)
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`, shape (B, C, H, W).

        Raises:
            ConfigError: the processes cannot be divided into groups of `group_size`.
        """
        group = _process_group(self.group_size) if self.training else None
        if group is None:
            return nn.BatchNorm2d.forward(self, input)  # the forward that both inherit
        if input.device.type == "cpu":
            return self._forward_on_cpu(input, group)
        self.process_group = group  # for the call only: a group can be neither copied nor saved
        try:
            normalised: Tensor = super().forward(input)
            return normalised
        finally:
            self.process_group = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4:
            raise ValueError(f"input: expected 4 dimensions (B, C, H, W), got {input.ndim}. Add the batch dimension.")

    def _forward_on_cpu(self, input: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _sum_over(group, torch.cat([x.sum(dim=(0, 2, 3)), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean[:, None, None]
        var = _sum_over(group, centred.square().sum(dim=(0, 2, 3))) / total
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(var * total / (total - 1), self.momentum or 0.0)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _SumOver(torch.autograd.Function):
    """Sum of the processes' values; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _sum_over(group: dist.ProcessGroup, values: Tensor) -> Tensor:
    """Return the sum of the processes' `values`, through which gradients flow to all of them."""
    return cast(Tensor, _SumOver.apply(values, group))


def _process_group(group_size: int | None) -> dist.ProcessGroup | None:
    """Return the group that this process shares statistics with, None if that is only itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    world_size = dist.get_world_size()
    if min(group_size or world_size, world_size) == 1:
        return None
    if group_size is None or group_size >= world_size:
        return dist.group.WORLD
    if world_size % group_size:
        raise ConfigError(
            f"sync_group_size: expected a divisor of the {world_size} processes, got {group_size}. "
            "Start another number of processes, or set it to null."
        )
    return _subgroup(group_size)


@cache
def _subgroup(group_size: int) -> dist.ProcessGroup:
    """Return this process's group of `group_size` consecutive ranks; every process must call it alike."""
    return dist.new_subgroups(group_size)[0]


def make_norm(norm: str, channels: int, group_size: int | None = None) -> nn.Module:
    """Return the normalisation layer of that name: one of `BackboneNorm` or `Norm`."""
    match norm:
        case "batch_norm":
            return nn.BatchNorm2d(channels)
        case "batch_norm_fixed_stats":
            return FixedStatsBatchNorm2d(channels)
        case "sync_batch_norm":
            return SyncBatchNorm2d(channels, group_size)
        case _:
            return nn.Identity()


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm, group_size: int | None = None
) -> nn.Sequential:
    """Return a same-size convolution ``conv`` with a bias, or with a batch norm ``norm`` in its place."""
    has_norm = norm != "none"
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not has_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if has_norm:
        layers["norm"] = make_norm(norm, out_channels, group_size)
    return nn.Sequential(layers)
