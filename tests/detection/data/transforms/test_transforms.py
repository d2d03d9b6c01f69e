import json
from pathlib import Path

import pytest
import torch

from sparsedet.common.config import validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.scene import IGNORE, Scene
from sparsedet.detection.data.transforms import TRANSFORMS

SMALLEST = {  # settings without a default, and those that suit a small image
    "resize": {"size": (20, 50)},
    "resize_shorter": {"shorter": 15},
    "mosaic": {"size": 32},
    "stitch_expand": {"p": 1},
    "zoom_out": {"p": 1},
}
OBJECT, CROWD = (2, 3, 12, 11, 5), (15, 5, 39, 29, IGNORE)
BOXES = {"object": (OBJECT,), "crowd": (CROWD,), "both": (OBJECT, CROWD), "nothing": ()}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("inclusive", [False, True], ids=["continuous", "inclusive"])
def test_every_transform_returns_a_valid_scene_and_leaves_its_input_alone(name, boxes, inclusive, scene):
    transform = TRANSFORMS[name](**SMALLEST.get(name, {}))
    given = scene(boxes, inclusive=inclusive, others=[scene(boxes), scene((), 1, 50), scene(boxes, 300, 7)])
    before = [tensor.clone() for tensor in (given.image, given.boxes_xyxy, given.labels)]
    for seed in range(6):
        torch.manual_seed(seed)
        found = transform(given)
        assert type(found) is Scene
        assert type(found.image) is type(found.boxes_xyxy) is torch.Tensor
        assert (found.image.dtype, found.boxes_xyxy.dtype, found.labels.dtype) == (
            torch.uint8,
            torch.float32,
            torch.int64,
        )
        assert found.image.shape[0] == 3
        assert found.boxes_xyxy.shape == (len(found.labels), 4)
        assert set(found.labels.tolist()) <= {row[4] for row in boxes}
        height, width = found.size
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= torch.tensor([width, height, width, height])).all()
        assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
        assert (found.inclusive_boxes, found.others) == (inclusive, given.others)
        assert found.is_mosaic == (name == "mosaic")
    assert all(map(torch.equal, (given.image, given.boxes_xyxy, given.labels), before))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_takes_an_image_of_one_pixel(name, scene):
    transform = TRANSFORMS[name](**SMALLEST.get(name, {}))
    for seed in range(6):
        torch.manual_seed(seed)
        found = transform(scene([(0, 0, 1, 1, 0)], 1, 1, others=[scene((), 1, 1)]))
        assert min(found.size) >= 1


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_draws_from_torchs_generator_only(name, scene):
    transform = TRANSFORMS[name](**SMALLEST.get(name, {}))
    given = scene(others=[scene(height=20)])
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append([transform(given) for _ in range(4)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_can_be_chosen_in_yaml_and_is_written_back(name):
    settings = json.dumps({"type": name, **SMALLEST.get(name, {})})
    document = parse_yaml(f"root: /data\ntrain_transforms: [{settings}]", "recipe.yaml", Path("/"))
    config = validate(DataConfig, document)
    assert config.train_transforms == (TRANSFORMS[name](**SMALLEST.get(name, {})),)
    assert config.train_transforms[0].type == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{type: horizontal_flop}",
            ".type: expected one of ['color_jitter', 'horizontal_flip', 'hsv_jitter', 'iou_crop', 'mosaic', "
            "'random_perspective', 'resize', 'resize_shorter', 'square_crop', 'stitch_expand', 'vertical_flip', "
            "'zoom_out'], got 'horizontal_flop'. Did you mean 'horizontal_flip'? Correct it.",
        ),
        (
            "{type: horizontal_flip, p: 1.5}",
            ".p: expected less than or equal to 1, got 1.5. Correct the value.",
        ),
        (
            "{type: resize, size: [0, 5]}",
            ".size[0]: expected greater than or equal to 1, got 0. Correct the value.",
        ),
        (
            "{type: square_crop, fill: [0, 0, 256]}",
            ".fill[2]: expected less than or equal to 255, got 256. Correct the value.",
        ),
        (
            "{type: resize, size: [5, 5], interpolation: cubic}",
            ".interpolation: expected 'antialias' or 'opencv', got 'cubic'. Correct the value.",
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


def test_evaluation_has_one_size():
    text = "root: /data\nval_transforms:\n- {type: resize_shorter, shorter: [640, 800]}"
    with pytest.raises(ConfigError) as raised:
        validate(DataConfig, parse_yaml(text, "recipe.yaml", Path("/")))
    assert str(raised.value) == (
        "recipe.yaml:3: val_transforms[0]: shorter: expected one number for evaluated images, got [640, 800]. "
        "Choose the one to evaluate at."
    )
