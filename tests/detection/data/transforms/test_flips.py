import pytest
import torch

from sparsedet.detection.data.transforms import HorizontalFlip, VerticalFlip
from sparsedet.detection.data.transforms.flips import mirror


def test_flips_mirror_image_and_boxes(scene):
    given = scene()
    mirrored = HorizontalFlip(p=1)(given)
    assert torch.equal(mirrored.image, given.image.flip(2))
    assert mirrored.boxes_xyxy.tolist() == [[28, 3, 38, 11], [0, 10, 20, 30]]
    mirrored = VerticalFlip(p=1)(given)
    assert torch.equal(mirrored.image, given.image.flip(1))
    assert mirrored.boxes_xyxy.tolist() == [[2, 19, 12, 27], [20, 0, 40, 20]]


def test_the_last_pixel_of_an_inclusive_box_becomes_the_first(scene):
    given = scene([(0, 0, 9, 4, 0)], inclusive=True)
    assert mirror(given, axis=0).boxes_xyxy.tolist() == [[30, 0, 39, 4]]
    assert mirror(given, axis=1).boxes_xyxy.tolist() == [[0, 25, 9, 29]]


def test_united_perceptions_flip(golden_scene, assert_golden):
    assert_golden("flip_on", mirror(golden_scene(), axis=0), grey_levels=0)


@pytest.mark.parametrize("transform", [HorizontalFlip, VerticalFlip])
def test_flips_happen_as_often_as_asked(transform, scene):
    given = scene()
    assert transform(p=0)(given) is given
    torch.manual_seed(0)
    flip = transform(p=0.25)
    assert sum(flip(given) is not given for _ in range(400)) == pytest.approx(100, abs=25)
