import json
from pathlib import Path

import pytest
import torch
from torchvision import tv_tensors

from sparsedet.common.config import validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.transforms import (
    TRANSFORMS,
    ColorJitter,
    HorizontalFlip,
    IouCrop,
    Resize,
    ResizeShorter,
    VerticalFlip,
    ZoomOut,
)

SMALLEST = {"resize": {"size": (20, 50)}, "resize_shorter": {"shorter": 15}}  # settings without a default


def pair(height=30, width=40, boxes=((2.0, 3.0, 12.0, 11.0), (20.0, 10.0, 40.0, 30.0))):
    pixels = torch.arange(3 * height * width, dtype=torch.int64).reshape(3, height, width).remainder(256).byte()
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.Image(pixels), tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("boxes", [((2.0, 3.0, 12.0, 11.0),), ()], ids=["one box", "no box"])
def test_every_transform_keeps_types_and_number_of_boxes(name, boxes):
    transform = TRANSFORMS[name](**SMALLEST.get(name, {}))
    for seed in range(4):
        torch.manual_seed(seed)
        image, found = transform(*pair(boxes=boxes))
        assert type(image) is tv_tensors.Image
        assert type(found) is tv_tensors.BoundingBoxes
        assert image.dtype == torch.uint8
        assert found.shape == (len(boxes), 4)
        assert found.canvas_size == tuple(image.shape[1:])
        assert (found >= 0).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_can_be_chosen_in_yaml_and_is_written_back(name):
    settings = json.dumps({"type": name, **SMALLEST.get(name, {})})
    document = parse_yaml(f"root: /data\ntrain_transforms: [{settings}]", "recipe.yaml", Path("/"))
    config = validate(DataConfig, document)
    assert config.train_transforms == (TRANSFORMS[name](**SMALLEST.get(name, {})),)
    assert config.train_transforms[0].type == name


def test_resize_moves_boxes_by_the_ratio_of_each_side():
    image, boxes = Resize(size=(60, 20))(*pair())
    assert image.shape == (3, 60, 20)
    assert boxes.tolist() == [[1, 6, 6, 22], [10, 20, 20, 60]]
    assert Resize(size=(60, 20)).output_size((30, 40)) == (60, 20)


@pytest.mark.parametrize(
    ("size", "shorter", "max_longer", "expected"),
    [
        ((30, 40), 60, None, (60, 80)),
        ((40, 30), 60, None, (80, 60)),
        ((30, 40), 60, 80, (60, 80)),
        ((30, 40), 60, 70, (52, 70)),
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((1, 1000), 10, 50, (1, 50)),
    ],
)
def test_resize_shorter(size, shorter, max_longer, expected):
    transform = ResizeShorter(shorter=shorter, max_longer=max_longer)
    assert transform.output_size(size) == expected
    image, _ = transform(*pair(*size, boxes=()))
    assert tuple(image.shape[1:]) == expected


def test_resize_shorter_needs_a_limit_that_leaves_room():
    text = "root: /data\nval_transforms:\n- {type: resize_shorter, shorter: 80, max_longer: 70}"
    with pytest.raises(ConfigError) as raised:
        validate(DataConfig, parse_yaml(text, "recipe.yaml", Path("/")))
    assert str(raised.value) == (
        "recipe.yaml:3: val_transforms[0]: expected max_longer >= shorter (80), got 70. "
        "Raise max_longer, or leave it out."
    )


def test_flips_mirror_image_and_boxes():
    image, boxes = pair()
    mirrored, found = HorizontalFlip(p=1)(image, boxes)
    assert torch.equal(mirrored, image.flip(2))
    assert found.tolist() == [[28, 3, 38, 11], [0, 10, 20, 30]]
    mirrored, found = VerticalFlip(p=1)(image, boxes)
    assert torch.equal(mirrored, image.flip(1))
    assert found.tolist() == [[2, 19, 12, 27], [20, 0, 40, 20]]


@pytest.mark.parametrize("transform", [HorizontalFlip(p=0), VerticalFlip(p=0), ZoomOut(p=0)])
def test_probability_0_changes_nothing(transform):
    image, boxes = pair()
    same, found = transform(image, boxes)
    assert torch.equal(same, image)
    assert torch.equal(found, boxes)


def test_color_jitter_changes_colours_only():
    torch.manual_seed(0)
    image, boxes = pair()
    other, found = ColorJitter(hue=0.1)(image, boxes)
    assert other.shape == image.shape
    assert not torch.equal(other, image)
    assert torch.equal(found, boxes)


def test_zoom_out_moves_boxes_with_the_image():
    torch.manual_seed(0)
    image, boxes = pair()
    canvas, found = ZoomOut(max_scale=2, p=1)(image, boxes)
    left, top = (found - boxes)[0, :2].int().tolist()
    assert canvas.shape[1] > 30
    assert torch.equal(canvas[:, top : top + 30, left : left + 40], image)
    assert canvas[:, -1, -1].tolist() == [124, 116, 104]
    assert torch.allclose(found - boxes, torch.tensor([left, top] * 2, dtype=torch.float32))


def test_iou_crop_takes_the_area_of_boxes_whose_centre_is_left_out():
    cropped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        image, boxes = pair()
        part, found = IouCrop()(image, boxes)
        sides = found[:, 2:] - found[:, :2]
        assert (sides.prod(dim=1) > 0).any()
        cropped += tuple(part.shape) != tuple(image.shape)
        assert (found[:, 2] <= part.shape[2]).all()
    assert cropped > 5


def test_iou_crop_leaves_an_image_without_boxes_whole():
    image, boxes = pair(boxes=())
    assert IouCrop()(image, boxes) == (image, boxes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{type: horizontal_flop}",
            ".type: expected one of ['color_jitter', 'horizontal_flip', 'iou_crop', "
            "'resize', 'resize_shorter', 'vertical_flip', 'zoom_out'], got "
            "'horizontal_flop'. Did you mean 'horizontal_flip'? Correct it.",
        ),
        (
            "{type: horizontal_flip, p: 1.5}",
            ".p: expected less than or equal to 1, got 1.5. Correct the value.",
        ),
        (
            "{type: resize, size: [0, 5]}",
            ".size[0]: expected greater than or equal to 1, got 0. Correct the value.",
        ),
    ],
)
def test_wrong_settings(text, message):
    with pytest.raises(ConfigError) as raised:
        validate(DataConfig, parse_yaml(f"root: /data\ntrain_transforms:\n- {text}", "recipe.yaml", Path("/")))
    assert str(raised.value) == f"recipe.yaml:3: train_transforms[0]{message}"


def test_evaluation_can_only_resize():
    text = "root: /data\nval_transforms: [{type: horizontal_flip}]"
    with pytest.raises(ConfigError, match=r"expected one of \['resize', 'resize_shorter'\]"):
        validate(DataConfig, parse_yaml(text, "recipe.yaml", Path("/")))
