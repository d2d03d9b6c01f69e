"""Normalisation layers and the convolutions that carry them."""

from collections import OrderedDict
from typing import Literal, Self

from torch import nn


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


BackboneNorm = Literal["batch_norm", "batch_norm_fixed_stats"]
BACKBONE_NORMS: dict[str, type[nn.BatchNorm2d]] = {
    "batch_norm": nn.BatchNorm2d,
    "batch_norm_fixed_stats": FixedStatsBatchNorm2d,
}
Norm = Literal["batch_norm", "none"]


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm: Norm) -> nn.Sequential:
    """Return a same-size convolution ``conv`` with a bias, or with a batch norm ``norm`` in its place."""
    has_norm = norm == "batch_norm"
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not has_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if has_norm:
        layers["norm"] = nn.BatchNorm2d(out_channels)
    return nn.Sequential(layers)
