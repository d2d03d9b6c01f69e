import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.common.config import validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError, DatasetError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.scene import IGNORE
from sparsedet.detection.data.transforms import RandomPerspective

STILL = {"translate": 0, "scale": 0}


def test_standing_still_changes_nothing(scene):
    given = scene()
    found = RandomPerspective(**STILL)(given)
    assert torch.equal(found.image, given.image)
    assert torch.allclose(found.boxes_xyxy, given.boxes_xyxy, atol=1e-5)


def test_shifts_move_pixels_and_boxes_and_fill_the_rest(scene):
    given = scene([(2, 3, 12, 11, 0)])
    found = RandomPerspective(fill=9).warp(given, 1.0, shifts=(0.1, -0.1))  # 4 and -3 pixels
    assert torch.equal(found.image[:, :27, 4:], given.image[:, 3:, :36])
    assert found.image[:, :, :4].unique().tolist() == found.image[:, 27:].unique().tolist() == [9]
    assert torch.allclose(found.boxes_xyxy, torch.tensor([[6.0, 0.0, 16.0, 8.0]]), atol=1e-5)


def test_margins_are_cut_off_all_sides(scene):
    given = scene([(10, 5, 30, 25, 0)])
    found = RandomPerspective(margin=4, **STILL)(given)
    assert torch.equal(found.image, given.image[:, 4:-4, 4:-4])
    assert torch.allclose(found.boxes_xyxy, torch.tensor([[6.0, 1.0, 26.0, 21.0]]), atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.5])
def test_boxes_stay_on_what_they_frame(factor, traced, seen):
    found = RandomPerspective().warp(traced(90, 120, (43, 31, 83, 55)), factor, shifts=(0.05, -0.03))
    assert seen(found) == pytest.approx(found.boxes_xyxy[0].tolist(), abs=0.05)


def test_a_box_frames_the_corners_of_the_rotated_one(scene):
    given = scene([(20, 10, 40, 20, 0)], 60, 80)
    found = RandomPerspective().warp(given, 1.0, angle=90)
    # A quarter turn anti-clockwise about pixel (40, 30): x, y becomes y - 30 + 40, 40 - x + 30.
    corners = [(y - 30 + 40, 40 - x + 30) for x in (19.5, 39.5) for y in (9.5, 19.5)]
    xs, ys = zip(*corners, strict=True)
    expected = [min(xs) + 0.5, min(ys) + 0.5, max(xs) + 0.5, max(ys) + 0.5]
    assert found.boxes_xyxy[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(found.image[:, 30, 40], given.image[:, 30, 40])
    assert torch.equal(found.image[:, 30 - 12, 40 + 5], given.image[:, 30 + 5, 40 + 12])


def test_a_box_frames_all_four_rotated_corners(scene):
    found = RandomPerspective().warp(scene([(40, 20, 60, 30, 0)], 60, 80), 1.0, angle=30)
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    corners = [(x - 0.5 - 40, y - 0.5 - 30) for x in (40, 60) for y in (20, 30)]
    xs = [cosine * x + sine * y + 40.5 for x, y in corners]
    ys = [-sine * x + cosine * y + 30.5 for x, y in corners]
    assert found.boxes_xyxy[0].tolist() == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-4)


def test_pixels_are_those_of_an_independent_warp(scene):
    pixels = np.random.RandomState(1).randint(0, 256, (50, 60, 3)).astype(np.uint8)
    factor, angle, shears, tilts, shifts = 1.2, 12.0, (5.0, -4.0), (4e-4, -3e-4), (0.04, -0.02)
    cosine, sine = factor * math.cos(math.radians(angle)), factor * math.sin(math.radians(angle))
    matrix = (
        np.array([[1, 0, (0.5 + shifts[0]) * 60], [0, 1, (0.5 + shifts[1]) * 50], [0, 0, 1]])
        @ [[1, math.tan(math.radians(shears[0])), 0], [math.tan(math.radians(shears[1])), 1, 0], [0, 0, 1]]
        @ [[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]
        @ [[1, 0, 0], [0, 1, 0], [*tilts, 1]]
        @ [[1, 0, -30], [0, 1, -25], [0, 0, 1]]
    )
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # Pillow's pixels have their centres at halves
    back = half @ np.linalg.inv(matrix) @ np.linalg.inv(half)
    coefficients = (back / back[2, 2]).flatten()[:8].tolist()
    expected = np.asarray(
        Image.fromarray(pixels).transform((60, 50), Image.Transform.PERSPECTIVE, coefficients, Image.BILINEAR)
    )
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    given = replace(scene((), 50, 60), image=image)
    found = RandomPerspective().warp(given, factor, angle, shears, tilts, shifts).image.permute(1, 2, 0).numpy()
    inside = (expected > 0).all(axis=2) & (found > 0).all(axis=2)  # at the border Pillow does not mix in the fill
    assert inside.mean() > 0.5
    differences = np.abs(found.astype(int) - expected.astype(int))[inside]
    assert np.quantile(differences, 0.97) <= 1


@pytest.mark.parametrize(
    ("box", "factor", "shift", "left"),
    [
        ((0, 0, 40, 30), 1.0, 0, True),
        ((0, 0, 40, 30), 1.0, -0.315, True),
        ((0, 0, 40, 30), 1.0, -0.325, False),  # less than a fifth of the area
        ((0, 0, 40, 30), 0.5, -0.4025, True),  # 5 of 20 pixels
        ((0, 0, 40, 30), 0.5, -0.4225, False),  # 3 of 20 pixels
        ((10, 10, 15, 15), 0.41, 0, True),  # sides of 2.05
        ((10, 10, 15, 15), 0.39, 0, False),
        ((0, 10, 90, 14.6), 1.0, 0, True),  # sides in the ratio 19.6
        ((0, 10, 90, 14.4), 1.0, 0, False),
        ((120, 50, 130, 60), 1.0, 0, False),
    ],
)
def test_objects_of_which_little_is_left_are_removed_ignore_regions_are_not(box, factor, shift, left, scene):
    given = scene([(*box, 0), (*box, IGNORE)], height=60, width=100)
    warped = RandomPerspective().warp(given, factor, shifts=(shift, 0))
    assert (0 in warped.labels.tolist()) == left
    assert (IGNORE in warped.labels.tolist()) == (box[0] < 100)


def test_boxes_that_reach_behind_the_viewer_are_removed(scene):
    given = scene([(0, 0, 8, 8, 0), (30, 0, 40, 8, 1)])
    found = RandomPerspective().warp(given, 1.0, tilts=(0.055, 0.0))  # all left of x = 1.8 is behind
    assert found.labels.tolist() == [1]
    assert torch.isfinite(found.boxes_xyxy).all()


def test_nothing_is_seen_beyond_the_horizon(scene):
    found = RandomPerspective(fill=50).warp(scene(()), 1.0, tilts=(0.2, 0.0))  # the horizon is at x = 20 + 1 / 0.2
    assert found.image[:, :, 25:].unique().tolist() == [50]
    assert (found.image[:, :, :25] != 50).float().mean() > 0.5


def test_numbers_are_drawn_from_the_asked_ranges(scene, monkeypatch):
    drawn = []
    monkeypatch.setattr(RandomPerspective, "warp", lambda self, scene, *numbers: drawn.append(numbers) or scene)
    transform = RandomPerspective(degrees=10, translate=0.2, scale=0.3, shear=4, perspective=1e-3)
    torch.manual_seed(0)
    for _ in range(300):
        transform(scene())
    scales, angles = ([numbers[place] for numbers in drawn] for place in (0, 1))
    pairs = [[value for numbers in drawn for value in numbers[place]] for place in (2, 3, 4)]
    for values, low, high in zip(
        (scales, angles, *pairs), (0.7, -10, -4, -1e-3, -0.2), (1.3, 10, 4, 1e-3, 0.2), strict=True
    ):
        reach = high - low
        assert low <= min(values) < low + 0.03 * reach
        assert high - 0.03 * reach < max(values) <= high
    assert all(numbers[4][0] != numbers[4][1] for numbers in drawn)


def test_images_may_be_left_alone_unless_a_mosaic_was_made_of_them(scene):
    given = scene()
    assert RandomPerspective(only_mosaics=True)(given) is given
    assert RandomPerspective(only_mosaics=False)(given) is not given


def test_a_margin_that_leaves_nothing_is_refused(scene):
    with pytest.raises(DatasetError) as raised:
        RandomPerspective(margin=15)(scene())
    assert str(raised.value) == (
        "random_perspective.margin: expected less than half of an image's sides (40x30), got 15. "
        "Lower it, or set only_mosaics: true."
    )


def test_only_mosaics_needs_a_mosaic():
    text = "root: /data\ntrain_transforms:\n- {type: random_perspective, only_mosaics: true}"
    with pytest.raises(ConfigError) as raised:
        validate(DataConfig, parse_yaml(text, "recipe.yaml", Path("/")))
    assert str(raised.value) == (
        "recipe.yaml: top level: train_transforms[0].only_mosaics: expected a mosaic before it, got none. "
        "Add one, or drop only_mosaics."
    )
    validate(DataConfig, parse_yaml(text.replace(":\n- ", ":\n- {type: mosaic}\n- "), "recipe.yaml", Path("/")))
