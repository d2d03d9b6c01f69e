import random
from dataclasses import replace

import pytest
import torch

from sparsedet.detection.data.scene import IGNORE
from sparsedet.detection.data.transforms import Mosaic, RandomPerspective


def plain(scene, shade, size, boxes=()):
    given = scene(boxes, *size)
    return replace(given, image=torch.full_like(given.image, shade))


def test_four_images_meet_at_the_centre(scene):
    scenes = [plain(scene, 10 * (place + 1), (20, 20), [(5, 6, 15, 16, place)]) for place in range(4)]
    mosaic = Mosaic(size=20, fill=7).compose(scenes, centre=(18, 23))
    assert mosaic.size == (40, 40)
    assert mosaic.is_mosaic
    expected = torch.full((40, 40), 7)
    expected[3:23, :18] = 10
    expected[3:23, 18:38] = 20
    expected[23:, :18] = 30
    expected[23:, 18:38] = 40
    assert torch.equal(mosaic.image, expected.byte().expand(3, 40, 40))
    assert mosaic.boxes_xyxy.tolist() == [[3, 9, 13, 19], [23, 9, 33, 19], [3, 29, 13, 39], [23, 29, 33, 39]]
    assert mosaic.labels.tolist() == [0, 1, 2, 3]


def test_each_image_fits_into_the_size_and_keeps_its_aspect_ratio(scene):
    scenes = [plain(scene, 255, (10, 20), [(0, 0, 20, 10, 0)]), *[plain(scene, 0, (8, 8))] * 3]
    mosaic = Mosaic(size=40).compose(scenes, centre=(40, 40))
    assert mosaic.boxes_xyxy.tolist() == [[0, 20, 40, 40]]
    assert mosaic.image[0, 20:40, :40].min() == 255
    assert mosaic.image.sum() == 3 * 255 * 20 * 40


def test_what_lies_outside_the_canvas_is_cut_off(scene):
    rows = [(0, 0, 10, 20, 0), (5, 5, 20, 20, 1), (0, 0, 12, 20, IGNORE)]
    mosaic = Mosaic(size=20).compose([plain(scene, 1, (20, 20), rows)] + [plain(scene, 1, (20, 20))] * 3, (10, 30))
    assert mosaic.boxes_xyxy.tolist() == [[0, 15, 10, 30], [0, 10, 2, 30]]
    assert mosaic.labels.tolist() == [1, IGNORE]


def test_mosaic_draws_a_centre_and_three_images_of_the_split(scene):
    others = [plain(scene, shade, (20, 20)) for shade in range(100, 104)]
    given = replace(plain(scene, 50, (20, 20)), others=scene(others=others).others)
    torch.manual_seed(0)
    mosaics = [Mosaic(size=20)(given) for _ in range(30)]
    shades = [set(mosaic.image[0].flatten().tolist()) & {100, 101, 102, 103} for mosaic in mosaics]
    assert set().union(*shades) == {100, 101, 102, 103}
    assert min(map(len, shades)) < 3 == max(map(len, shades))  # the same image may come twice
    lefts = {(mosaic.image[0, 30] == 0).nonzero().flatten().tolist()[-1] for mosaic in mosaics}
    assert len(lefts) > 5
    assert all(mosaic.others is given.others for mosaic in mosaics)


def test_mosaic_happens_as_often_as_asked(scene):
    given = scene(others=[scene()])
    assert Mosaic(size=8, p=0)(given) is given
    torch.manual_seed(0)
    assert 20 < sum(Mosaic(size=8, p=0.3)(given).is_mosaic for _ in range(100)) < 40


def test_mosaic_of_a_split_of_one_image(scene):
    given = scene(others=[scene()])
    assert len(Mosaic(size=40)(given).labels) >= 2


# --- United-Perception's ---------------------------------------------------------------------------------


def golden_mosaic(golden_scene, seed, seed_all):
    seed_all(seed)
    random.random()  # whether it happens
    centre_y, centre_x = int(random.uniform(64, 192)), int(random.uniform(64, 192))
    scenes = [golden_scene()]
    for index in (random.randint(0, 4) for _ in range(3)):
        boxes = [(5 + index, 6, 50, 60, 1 + index), (40, 30, 80, 70, 10 + index)]
        scenes.append(golden_scene(boxes, height=80 + 10 * index, width=120 - 8 * index, seed=100 + index))
    return Mosaic(size=128).compose(scenes, (centre_x, centre_y))


@pytest.mark.parametrize("seed", range(3))
def test_united_perceptions_mosaic(seed, golden_scene, assert_golden, seed_all):
    assert_golden(f"mosaic_seed{seed}", golden_mosaic(golden_scene, seed, seed_all), grey_levels=1)


@pytest.mark.parametrize("seed", range(3))
def test_united_perceptions_random_perspective(seed, golden_scene, assert_golden, seed_all):
    mosaic = golden_mosaic(golden_scene, seed, seed_all)
    seed_all(50 + seed)
    for _ in range(3):
        random.uniform(0, 0)  # perspective along x and y, angle
    factor = random.uniform(0.5, 1.5)
    for _ in range(2):
        random.uniform(0, 0)  # shear along x and y
    shifts = (random.uniform(-0.1, 0.1), random.uniform(-0.1, 0.1))
    warped = RandomPerspective(margin=64).warp(mosaic, factor, shifts=shifts)
    # One grey level is from the mosaic's resizing; the warp itself rounds differently in 1 of 1000 pixels.
    assert_golden(f"mosaic_seed{seed}_then_random_perspective_seed{50 + seed}", warped, grey_levels=1)
