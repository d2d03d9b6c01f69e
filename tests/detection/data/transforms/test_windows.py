import random

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from sparsedet.detection.data.scene import IGNORE
from sparsedet.detection.data.transforms import IouCrop, SquareCrop, StitchExpand, ZoomOut
from sparsedet.detection.data.transforms.windows import (
    Window,
    crop,
    holds_object,
    pad_to_square,
    show_tiles,
    tile_boxes,
)


def tiles(image):
    """Lay four copies of an image side by side."""
    return torch.cat([torch.cat([image, image], dim=2)] * 2, dim=1)


def place_of(part, image):
    """Return (left, top) of a part of an image whose pixels are all different."""
    found = (image == part[:, :1, :1]).all(dim=0).nonzero().tolist()
    places = [(x, y) for y, x in found if torch.equal(image[:, y : y + part.shape[1], x : x + part.shape[2]], part)]
    assert places
    return places[0]


# --- zoom_out and iou_crop -------------------------------------------------------------------------------


def test_zoom_out_moves_boxes_with_the_image(scene):
    torch.manual_seed(0)
    given = scene()
    canvas = ZoomOut(max_scale=2, p=1)(given)
    offset = canvas.boxes_xyxy - given.boxes_xyxy
    left, top = offset[0, :2].int().tolist()
    assert canvas.size[0] > 30
    assert torch.equal(canvas.image[:, top : top + 30, left : left + 40], given.image)
    assert canvas.image[:, -1, -1].tolist() == [124, 116, 104]
    assert torch.equal(offset, torch.tensor([[left, top] * 2] * 2, dtype=torch.float32))


def test_zoom_out_with_probability_0_changes_nothing(scene):
    given = scene()
    assert torch.equal(ZoomOut(p=0)(given).image, given.image)


def test_iou_crop_is_torchvisions(scene):
    num_cropped = 0
    for seed in range(30):
        given = scene([(2, 3, 12, 11, 0), (20, 10, 40, 30, 1)])
        boxes = tv_tensors.BoundingBoxes(given.boxes_xyxy, format="XYXY", canvas_size=given.size)
        torch.manual_seed(seed)
        image, expected = v2.RandomIoUCrop(min_scale=0.3)(tv_tensors.Image(given.image), boxes)
        torch.manual_seed(seed)
        part = IouCrop()(given)
        assert torch.equal(part.image, image)
        has_area = (expected[:, 2:] > expected[:, :2]).all(dim=1)
        assert torch.equal(part.boxes_xyxy, expected.as_subclass(torch.Tensor)[has_area])
        assert torch.equal(part.labels, given.labels[has_area])
        num_cropped += part.size != given.size
    assert num_cropped > 10


def test_iou_crop_overlaps_objects_not_crowds_and_leaves_images_without_objects_whole(scene):
    for boxes in ((), [(0, 0, 30, 30, IGNORE)]):
        given = scene(boxes)
        assert IouCrop()(given) is given


# --- windows ---------------------------------------------------------------------------------------------


def test_objects_are_kept_by_their_centre_and_what_is_kept_is_clipped(scene):
    given = scene([(0, 0, 10, 10, 0), (6, 6, 16, 16, 1), (12, 12, 30, 28, 2), (26, 4, 36, 8, 3)])
    part = crop(given, Window(left=5, top=5, width=20, height=20))
    assert torch.equal(part.image, given.image[:, 5:25, 5:25])
    assert part.labels.tolist() == [1, 2]  # the centre of the first lies on the edge
    assert part.boxes_xyxy.tolist() == [[1, 1, 11, 11], [7, 7, 20, 20]]


def test_ignore_regions_are_kept_wherever_they_are_seen(scene):
    given = scene([(0, 0, 10, 10, IGNORE), (0, 0, 5, 40, IGNORE), (20, 20, 40, 30, IGNORE)])
    part = crop(given, Window(left=5, top=5, width=20, height=20))
    assert part.boxes_xyxy.tolist() == [[0, 0, 5, 5], [15, 15, 20, 20]]
    assert part.labels.tolist() == [IGNORE, IGNORE]


@pytest.mark.parametrize(
    ("box", "expected"),
    [((5, 5, 25, 25), True), ((4.9, 5, 20, 20), False), ((5, 5, 20, 25.1), False), ((10, 10, 12, 12), True)],
)
def test_a_window_holds_an_object_as_a_whole_or_not_at_all(box, expected, scene):
    window = Window(left=5, top=5, width=20, height=20)
    assert holds_object(scene([(*box, 0), (30, 0, 40, 10, 1)]), window) == expected
    assert not holds_object(scene([(*box, IGNORE)]), window)


def test_tiles_show_every_copy_of_an_object(scene):
    given = scene([(2, 3, 12, 11, 4)])
    window = show_tiles(tile_boxes(given), Window(left=5, top=6, width=70, height=52))
    assert torch.equal(window.image, tiles(given.image)[:, 6:58, 5:75])
    assert window.boxes_xyxy.tolist() == [[0, 0, 7, 5], [37, 0, 47, 5], [0, 27, 7, 35], [37, 27, 47, 35]]
    assert window.labels.tolist() == [4] * 4


# --- stitch_expand ---------------------------------------------------------------------------------------


def test_stitch_expand_shows_a_larger_window_with_a_whole_object(scene):
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        given = scene([(2, 3, 12, 11, 4)])
        found = StitchExpand(max_scale=1.5, p=1)(given)
        place_of(found.image, tiles(given.image))
        assert (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).tolist().count([10, 8]) >= 1
        assert 30 <= found.size[0] <= 45
        assert 40 <= found.size[1] <= 60
        sizes.add(found.size)
    assert len(sizes) > 10


@pytest.mark.parametrize("boxes", [(), [(2, 3, 12, 11, IGNORE)]])
def test_stitch_expand_needs_an_object_a_chance_and_a_margin(boxes, scene):
    given = scene(boxes)
    assert StitchExpand(p=1)(given) is given
    with_object = scene()
    assert StitchExpand(p=0)(with_object) is with_object
    assert StitchExpand(p=1, max_scale=1.01)(with_object) is with_object


def test_stitch_expand_leaves_an_object_larger_than_every_window_alone(scene):
    given = scene([(-200, -200, 300, 300, 0)])
    assert StitchExpand(p=1)(given) is given


@pytest.mark.parametrize("seed", range(6))
def test_united_perceptions_stitch_expand(seed, golden_scene, assert_golden, seed_all):
    seed_all(seed)
    torch.rand(1)  # whether it happens
    factor = random.uniform(1, 2)
    given = golden_scene()
    (height, width), plane = given.size, tile_boxes(given)
    new_height, new_width = int(factor * height), int(factor * width)
    for _ in range(10):
        left, top = random.randrange(2 * width - new_width), random.randrange(2 * height - new_height)
        window = Window(left, top, new_width, new_height)
        if holds_object(plane, window):
            break
    assert_golden(f"stitch_expand_seed{seed}", show_tiles(plane, window), grey_levels=0)


# --- square_crop -----------------------------------------------------------------------------------------


def test_square_crop_keeps_an_object_as_a_whole_wherever_one_fits(scene):
    sides = set()
    for seed in range(50):
        torch.manual_seed(seed)
        given = scene([(2, 3, 12, 11, 4), (0, 0, 39, 30, 5)])
        found = SquareCrop(p=0.5)(given)
        assert found.size[0] == found.size[1] <= 30
        left, top = place_of(found.image, given.image)
        assert [2 - left, 3 - top, 12 - left, 11 - top] in found.boxes_xyxy.tolist()
        sides.add(found.size[0])
    assert 15 <= min(sides) < 25
    assert max(sides) == 30


def test_square_crop_without_chance_takes_the_whole_shorter_side(scene):
    torch.manual_seed(0)
    assert {SquareCrop(p=0)(scene()).size for _ in range(20)} == {(30, 30)}


def test_square_crop_pads_where_no_square_holds_an_object(scene):
    given = scene([(0, 0, 40, 30, 0)])
    padded = SquareCrop(fill=(1, 2, 3))(given)
    assert padded.size == (40, 40)
    assert torch.equal(padded.image[:, :30], given.image)
    assert padded.image[:, 30:].flatten(1).unique(dim=1).tolist() == [[1], [2], [3]]
    assert padded.boxes_xyxy.tolist() == [[0, 0, 40, 30]]


def test_square_crop_takes_any_square_of_an_image_without_objects(scene):
    given = scene([(0, 0, 5, 30, IGNORE)])
    torch.manual_seed(0)
    found = [SquareCrop()(given) for _ in range(20)]
    assert {one.size for one in found} == {(30, 30)}
    lefts = {place_of(one.image, given.image)[0] for one in found}
    assert len(lefts) > 3
    assert {len(one.labels) for one in found} == {0, 1}


def united_perceptions_crop(scene, crop_prob):
    """Replay the draws of United-Perception's crop."""

    def offset(room):
        return random.randrange(room) if room else 0

    height, width = scene.size
    if not scene.has_objects:
        side = min(scene.size)
        return crop(scene, Window(offset(width - side), offset(height - side), side, side))
    for _ in range(100):
        factor = random.uniform(0.5, 1) if torch.rand(1) < crop_prob else 1
        side = int(factor * min(scene.size))
        window = Window(offset(width - side), offset(height - side), side, side)
        if holds_object(scene, window):
            return crop(scene, window)
    return pad_to_square(scene, tuple(np.array([123.675, 116.28, 103.53]).astype(np.uint8).tolist()))


GOLDEN_CROPS = {
    **{f"crop_seed{seed}": (seed, 1, None) for seed in range(6)},
    "crop_scale1": (0, 0, None),
    "crop_fallback_no_box_fits": (0, 1, [(0, 0, 130, 96, 1)]),
    "crop_no_gt": (0, 1, ()),
}


@pytest.mark.parametrize("name", GOLDEN_CROPS)
def test_united_perceptions_crop(name, golden_scene, assert_golden, seed_all):
    seed, crop_prob, boxes = GOLDEN_CROPS[name]
    seed_all(seed)
    given = golden_scene() if boxes is None else golden_scene(boxes)
    assert_golden(name, united_perceptions_crop(given, crop_prob), grey_levels=0)
