"""Features of regions of interest, each from the level of the pyramid that suits its size.

Shapes: R regions of all images, C channels, S cells along each side of a pooled region.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_levels(rois_xyxy: Tensor, num_levels: int, base_scale: float) -> Tensor:
    """Return the index of each region's level in 0..num_levels-1, int64, shape (R,).

    A square region of `base_scale` pixels, or a smaller one, has level 0; each doubling is one level more.

    Source: Lin et al. 2017 (arXiv:1612.03144), eq. 1, with the scale of the finest level in place of 224.
    """
    scale = (rois_xyxy[:, 2:] - rois_xyxy[:, :2]).prod(dim=1).sqrt()
    # the small term puts regions that rounding left just below a boundary on its upper side
    return (scale / base_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def pool_rois(
    features: Sequence[Tensor],
    rois: Sequence[Tensor],
    levels: Tensor | None,
    finest_stride: int,
    pool_size: int,
    sampling_ratio: int,
    legacy: bool,
) -> Tensor:
    """Return the pooled regions, float32, shape (R, C, S, S), those of the first image first.

    Args:
        features: maps (B, C, H, W), finest first.
        rois: of each image, float32, shape (R of the image, 4), in pixels.
        levels: index into `features` of each region, shape (R,); None pools every region from every map, and
            the result holds all regions for the first map, then all for the second, and so on.
        finest_stride: of the first map, in pixels; each further map has twice the stride.
        pool_size: S.
        sampling_ratio: samples per cell along each side; 0 takes one per cell of the map.
        legacy: regions end at the inclusive corners of their boxes, one pixel earlier (see `boxes`).

    Source: He et al. 2017 (arXiv:1703.06870), sec. 3, without the half-pixel shift; torchvision's operator.
    """
    images = [boxes.new_full((len(boxes), 1), index) for index, boxes in enumerate(rois)]
    corners = torch.cat([torch.cat([image, boxes], dim=1) for image, boxes in zip(images, rois, strict=True)])
    if legacy:
        corners = corners - corners.new_tensor([0, 0, 0, 1, 1])

    def pool(level: int, chosen: Tensor) -> Tensor:
        # float32, as torchvision's operator computes under autocast, and the only dtype it has on every device
        scale = 1 / (finest_stride * 2**level)
        pooled: Tensor = roi_align(features[level].float(), chosen, pool_size, scale, sampling_ratio)
        return pooled

    if levels is None:
        return torch.cat([pool(level, corners) for level in range(len(features))])
    order = levels.argsort(stable=True)
    counts = levels.bincount(minlength=len(features)).tolist()
    grouped = torch.cat([pool(level, chosen) for level, chosen in enumerate(torch.split(corners[order], counts))])
    return grouped[order.argsort()]
