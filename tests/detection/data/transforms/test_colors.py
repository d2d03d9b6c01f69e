import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsedet.detection.data.transforms import ColorJitter, HsvJitter
from sparsedet.detection.data.transforms.colors import scale_hsv


def test_color_jitter_changes_colours_only(scene):
    torch.manual_seed(0)
    given = scene()
    other = ColorJitter(hue=0.1)(given)
    assert other.image.shape == given.image.shape
    assert not torch.equal(other.image, given.image)
    assert torch.equal(other.boxes_xyxy, given.boxes_xyxy)


def with_colorsys(pixel, factors):
    """Scale hue, saturation and value of one pixel, all as whole numbers."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    whole = [int(part * steps + 0.5) for part, steps in ((hue, 180), (saturation, 255), (value, 255))]
    whole[0] %= 180
    scaled = [int(part * factor) for part, factor in zip(whole, factors, strict=True)]
    hue, saturation, value = scaled[0] % 180 / 180, min(scaled[1], 255) / 255, min(scaled[2], 255) / 255
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


@pytest.mark.parametrize("factors", [(1, 1, 1), (0.99, 1.5, 0.7), (1.4, 0.3, 1.3), (1, 0, 1), (1, 1, 0.5)])
def test_hsv_jitter_does_what_colorsys_does(factors):
    pixels = np.random.RandomState(0).randint(0, 256, (3000, 3)).astype(np.uint8)
    pixels[:6] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 0, 1]]
    found = scale_hsv(torch.from_numpy(pixels.T[:, None].copy()), *factors)[:, 0].numpy().T
    expected = np.array([with_colorsys(pixel, factors) for pixel in pixels.astype(float)])
    differences = np.abs(found - expected).max(axis=1)
    # Few quotients lie so near to a half that OpenCV's rounded reciprocals round them the other way.
    assert (differences > 0.51).mean() < 0.03
    assert differences.max() < 18  # two steps of hue, of 255 / 30 grey levels


def test_hsv_jitter_draws_factors_around_one(scene):
    grey = replace(scene(()), image=torch.full((3, 2, 2), 100, dtype=torch.uint8))
    torch.manual_seed(0)
    values = [int(HsvJitter(value=0.4)(grey).image[0, 0, 0]) for _ in range(200)]
    assert 60 <= min(values) < 64
    assert 136 < max(values) <= 140
    assert HsvJitter(hue=1, saturation=1, value=0)(grey).image.unique().tolist() == [100]


def test_united_perceptions_augment_hsv(golden_scene, assert_golden, seed_all):
    seed_all(0)
    factors = np.random.uniform(-1, 1, 3) * [0.015, 0.7, 0.4] + 1
    given = golden_scene()
    # One grey level: OpenCV cuts two channels of most pixels off where it rounds those of others.
    scaled = replace(given, image=scale_hsv(given.image, *factors.tolist()))
    assert_golden("augment_hsv_seed0", scaled, grey_levels=1)
