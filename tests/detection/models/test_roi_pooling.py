import math

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from sparsedet.detection.models.roi_pooling import pool_rois, roi_levels

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
SIZE = (128, 160)


def make_maps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, 3, *size, generator=generator).to(dtype) for size in sizes]


def make_rois(number, seed):
    random = torch.rand(number, 4, generator=torch.Generator().manual_seed(seed))
    corners = random[:, :2] * 80
    return torch.cat([corners, corners + 3 + 45 * random[:, 2:] ** 2], dim=1)


def pool(features, rois, levels, pool_size=7, sampling_ratio=0, legacy=False):
    return pool_rois(features, rois, levels, 4, pool_size, sampling_ratio, legacy)


def test_levels_and_order_equal_ups(golden):
    units = golden("golden_units_two_stage.npz")
    levels = roi_levels(units["bboxsup_rois"][:, 1:] + ONE_PIXEL, num_levels=4, base_scale=56)
    assert torch.equal(levels.to(torch.int8), units["roi_levels_base56"])
    assert torch.equal(levels.argsort(stable=True).argsort().int(), units["roi_recover_inds"])


@pytest.mark.parametrize(("width", "height", "level"), [
    (56, 56, 0), (55.9, 55.9, 0), (1, 1, 0), (0, 30, 0),
    (112, 112, 1), (111.99997, 111.99997, 1), (111.9998, 111.9998, 0),
    (56, 224, 1), (224, 224, 2), (223, 223, 1), (448, 448, 3), (2000, 2000, 3),
])  # fmt: skip
def test_level_borders(width, height, level):
    roi = torch.tensor([[10.0, 20.0, 10.0 + width, 20.0 + height]])
    assert roi_levels(roi, num_levels=4, base_scale=56).tolist() == [level]
    assert roi_levels(roi, num_levels=2, base_scale=56).tolist() == [min(level, 1)]


def test_levels_equal_a_plain_loop():
    rois = make_rois(300, 0)
    expected = []
    for x1, y1, x2, y2 in rois.tolist():
        level = math.floor(math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 8 + 1e-6))
        expected.append(min(max(level, 0), 3))
    assert roi_levels(rois, num_levels=4, base_scale=8).tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooling_equals_torchvisions(sampling_ratio):
    features = make_maps()
    rois = [make_rois(20, 1) * 1.5, make_rois(30, 2)]
    scale = 224 / 16  # torchvision's levels for a base of 14 in place of 56
    theirs = MultiScaleRoIAlign(["a", "b", "c", "d"], 5, sampling_ratio, canonical_scale=scale)
    expected = theirs(dict(zip("abcd", features, strict=True)), rois, [SIZE, SIZE])
    levels = roi_levels(torch.cat(rois), num_levels=4, base_scale=scale / 4)
    assert len(levels.unique()) > 2
    torch.testing.assert_close(pool(features, rois, levels, 5, sampling_ratio), expected)


def test_legacy_regions_end_a_pixel_earlier():
    features, rois = make_maps(), make_rois(5, 0)
    pooled = pool(features, [rois, rois[:0]], torch.full((5,), 1), legacy=True)
    inclusive = torch.cat([torch.zeros(5, 1), rois - ONE_PIXEL], dim=1)
    torch.testing.assert_close(pooled, roi_align(features[1], inclusive, 7, 1 / 8, -1))
    assert not torch.allclose(pooled, pool(features, [rois, rois[:0]], torch.full((5,), 1)))


def test_pooling_from_every_level_goes_level_by_level():
    features, rois = make_maps(), [make_rois(3, 0), make_rois(2, 1)]
    everything = pool(features, rois, None)
    assert everything.shape == (20, 3, 7, 7)
    for level in range(4):
        one_level = pool(features, rois, torch.full((5,), level))
        torch.testing.assert_close(everything[5 * level : 5 * level + 5], one_level)


def test_gradients_reach_the_level_of_each_region_only():
    features = [x.requires_grad_() for x in make_maps()]
    pool(features, [make_rois(1, 0), make_rois(1, 1)], torch.tensor([0, 2])).sum().backward()
    touched = [[bool(x.grad[image].any()) for image in (0, 1)] for x in features]
    assert touched == [[True, False], [False, False], [False, True], [False, False]]


@pytest.mark.parametrize("levels", [torch.zeros(0, dtype=torch.int64), None])
def test_no_regions(levels):
    features = [x.requires_grad_() for x in make_maps()]
    pooled = pool(features, [torch.zeros(0, 4), torch.zeros(0, 4)], levels)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_pooling_is_done_in_float32():
    features, rois = make_maps(torch.bfloat16), [make_rois(4, 0), make_rois(1, 1)]
    levels = torch.tensor([0, 1, 2, 3, 0])
    pooled = pool(features, rois, levels)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pool([x.float() for x in features], rois, levels))
