"""What all backbones share: levels, frozen stages and the choice of weights.

Level l is the feature map of stride 2 ** l; stage s (0-based) takes level s to level s + 1: stage 0 is the
stem.
"""

from functools import partial
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.backbones.weights import check_weights
from sparsedet.detection.models.norms import BackboneNorm, make_norm


class BaseBackboneConfig(ConfigModel):
    """Fields of every backbone.

    Attributes:
        levels: levels given to the neck, ascending, each in 2..5 (strides 4..32).
        norm: ``batch_norm``, ``batch_norm_fixed_stats`` whose running statistics never change, or
            ``sync_batch_norm`` whose statistics several processes share.
        sync_group_size: consecutive ranks that do; null: all.
        init: ``kaiming_fan_out``, He et al.'s normal distribution as torchvision draws it, or ``lecun_normal``,
            variance 1 / fan in, which United-Perception calls msra.
        frozen_stages: how many stages, counted from the stem, are neither trained nor let out of eval mode;
            2 is the stem and the first stage, as usual with pretrained weights.
        weights: ``none``, a file ending in .pth or .pt with torchvision's key names, ``imagenet``, or the
            name of torchvision's weights such as ``IMAGENET1K_V1``.
    """

    type: str
    levels: tuple[int, ...] = (3, 4, 5)
    norm: BackboneNorm = "batch_norm"
    sync_group_size: PositiveInt | None = None
    init: Literal["kaiming_fan_out", "lecun_normal"] = "kaiming_fan_out"
    frozen_stages: NonNegativeInt = 0
    weights: str = "none"

    @property
    def make_norm(self) -> "partial[nn.Module]":
        """Function of the channels that returns a normalisation layer."""
        return partial(make_norm, self.norm, group_size=self.sync_group_size)

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= {2, 3, 4, 5}:
            raise ValueError(f"expected ascending levels out of 2, 3, 4, 5, got {list(levels)}. Correct the list.")
        return levels

    @field_validator("frozen_stages")
    @classmethod
    def _check_frozen_stages(cls, frozen_stages: int, info: ValidationInfo) -> int:
        levels = info.data.get("levels")
        if levels and frozen_stages > levels[-1]:
            raise ValueError(
                f"expected at most {levels[-1]} with levels={list(levels)}, got {frozen_stages}. Lower it."
            )
        return frozen_stages

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str, info: ValidationInfo) -> str:
        if kind := info.data.get("type"):
            check_weights(kind, weights)
        return weights


class Backbone(nn.Module):
    """Runs its stages one after the other and returns the feature maps of the chosen levels.

    A subclass creates its modules, gives them in `stages` and then calls ``train()`` once to freeze stages.

    Attributes:
        levels: levels returned, ascending.
        channels: number of channels of each returned level.
        strides: stride of each returned level in pixels.
    """

    channels: tuple[int, ...]

    def __init__(self, levels: tuple[int, ...], frozen_stages: int) -> None:
        super().__init__()
        self.levels = levels
        self.strides = tuple(2**level for level in levels)
        self.frozen_stages = frozen_stages

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of each stage in the order they run."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the frozen stages, which stay in eval mode and without gradients."""
        super().train(mode)
        for stage in self.stages()[: self.frozen_stages]:
            for module in stage:
                module.eval().requires_grad_(False)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps (B, channels[i], H / strides[i], W / strides[i]) of images (B, 3, H, W)."""
        features = []
        x = images
        for level, stage in enumerate(self.stages(), start=1):
            for module in stage:
                x = module(x)
            if level in self.levels:
                features.append(x)
        return tuple(features)


def init_convs(module: nn.Module, init: str) -> None:
    """Draw every convolution's weight; `init` as in `BaseBackboneConfig`."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            if init == "lecun_normal":
                nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="linear")
            else:
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
