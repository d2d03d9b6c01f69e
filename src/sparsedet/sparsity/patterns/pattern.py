"""What the sparsifier needs of every pattern."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.sparsity.weights import TRANSPOSED, Weight, num_dims


class BasePattern(ConfigModel, ABC):
    """Base of the patterns: zeros anywhere, one weight at a time, as many as the allocation says."""

    type: str
    kills_channels: ClassVar[bool] = False
    """Whether what follows a dead output channel (bias, norm) is zeroed with it; needs example inputs."""
    serves_any_layout: ClassVar[bool] = False
    """Whether weights are served that do not begin with output and input channels: those of transposed convolutions,
    and of subclasses that have dimensions of their own."""

    @property
    def fixed_sparsity(self) -> float | None:
        """Sparsity that the pattern itself gives every tensor; None: the allocation decides."""
        return None

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables, such as ``2:4``."""

    def unserved(self, module: nn.Module) -> str | None:
        """Return the rule by which the pattern cannot serve the weight of `module`; None: it can."""
        assert isinstance(module.weight, Tensor)
        if isinstance(module, TRANSPOSED) and not self.serves_any_layout:
            return f"{self.label} does not serve transposed convolutions"
        if module.weight.ndim != num_dims(module) and not self.serves_any_layout:
            return f"{self.label} needs a weight of {num_dims(module)} dimensions, got {module.weight.ndim}"
        return None

    def unserved_by(self, weight: Weight) -> str | None:
        """Return the rule by which the pattern cannot serve a weight in one of its layers; None: it can."""
        return next((rule for layer in weight.layers if (rule := self.unserved(layer))), None)

    def unit(self, shape: tuple[int, ...]) -> int:
        """Return how many weights of a tensor of `shape` go or stay together."""
        return 1

    def pooled(self, scores: Tensor) -> Tensor:
        """Return `scores` with the same score for all weights that go or stay together."""
        return scores

    @abstractmethod
    def mask(self, scores: Tensor, num_zeros: int) -> Tensor:
        """Return which weights stay: bool, shape of `scores`, True = keep.

        Args:
            scores: importance, float32 on the CPU, shape (O, I) or (O, I, *kernel); >= 0, or -1 for what must go
                first.
            num_zeros: how many go, a multiple of `unit`.
        """
