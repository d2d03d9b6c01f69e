"""Anchor boxes: the same set of shapes at every cell of every level."""

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError


class Anchors(ConfigModel):
    """Shapes of the anchors of a cell: every ratio with every scale, ratios outermost.

    Attributes:
        scales: side of a square anchor in strides of its level.
        ratios: height / width.
    """

    scales: tuple[PositiveFloat, ...] = Field(default=(6.0, 8.0), min_length=1)
    ratios: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1)

    @property
    def num_per_cell(self) -> int:
        """Number of anchors at each cell."""
        return len(self.scales) * len(self.ratios)

    def base(self, stride: int, legacy: bool) -> Tensor:
        """Return the anchors of the first cell, float64, shape (A, 4), in pixels, centred in the cell.

        `legacy` rounds the sides of the unscaled shapes (half to even), the height from the rounded width
        (up_semantics §3).

        Raises:
            ConfigError: nothing is left of a side that was rounded.
        """
        anchors = []
        for ratio in self.ratios:
            width = stride / ratio**0.5
            height = width * ratio
            if legacy:
                width = round(width)
                height = round(width * ratio)
                if not (width and height):
                    raise ConfigError(
                        f"anchors.ratios: expected sides of at least one pixel after legacy rounding, got {width} x "
                        f"{height} from the ratio {ratio:g} at stride {stride}. Choose a ratio nearer to 1."
                    )
            for scale in self.scales:
                half_width, half_height = width * scale / 2, height * scale / 2
                anchors.append(
                    (
                        stride / 2 - half_width,
                        stride / 2 - half_height,
                        stride / 2 + half_width,
                        stride / 2 + half_height,
                    )
                )
        return torch.tensor(anchors, dtype=torch.float64)

    def grids(self, maps: Sequence[Tensor], finest_stride: int, legacy: bool) -> list[Tensor]:
        """Return `grid` for each of the maps (B, channels, H, W), finest first, whose strides double."""
        return [
            self.grid(level_map.shape[-2:], finest_stride * 2**level, legacy, level_map.device)
            for level, level_map in enumerate(maps)
        ]

    def grid(self, size: Sequence[int], stride: int, legacy: bool, device: torch.device) -> Tensor:
        """Return all anchors of a level of `size` (H, W) cells, float32, shape (H * W * A, 4).

        The anchor a of cell (y, x) has index (y * W + x) * A + a.
        """
        height, width = size
        x = torch.arange(width, device=device) * stride
        y = torch.arange(height, device=device) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).view(-1, 1, 4)
        base = self.base(stride, legacy).to(device, torch.float32)
        return (shifts + base).view(-1, 4)


def per_anchor(x: Tensor, num_values: int) -> Tensor:
    """Turn the map of a head (B, anchors per cell * K, H, W) into (B, A, K), in the order of `Anchors.grid`.

    The result is float32, so that autocast lowers no operation after it.
    """
    return x.float().permute(0, 2, 3, 1).reshape(x.shape[0], -1, num_values)  # len(x) is no symbol to an exporter
