from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.common.config import validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.transforms import Resize, ResizeShorter
from sparsedet.detection.data.transforms.resize import resize_image


def test_resize_moves_boxes_by_the_ratio_of_each_side(scene):
    resized = Resize(size=(60, 20))(scene())
    assert resized.image.shape == (3, 60, 20)
    assert resized.boxes_xyxy.tolist() == [[1, 6, 6, 22], [10, 20, 20, 60]]
    assert Resize(size=(60, 20)).output_size((30, 40)) == (60, 20)


@pytest.mark.parametrize("interpolation", ["antialias", "opencv"])
@pytest.mark.parametrize("size", [(180, 300), (60, 40)])
def test_boxes_stay_on_what_they_frame(interpolation, size, traced, seen):
    resized = Resize(size=size, interpolation=interpolation)(traced(90, 120, (30, 21, 70, 51)))
    assert seen(resized) == pytest.approx(resized.boxes_xyxy[0].tolist(), abs=0.05)


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
        ((10, 25), 5, None, (5, 12)),  # 12.5: half to even
        ((10, 27), 5, None, (5, 14)),  # 13.5
    ],
)
@pytest.mark.parametrize("interpolation", ["antialias", "opencv"])
def test_resize_shorter(size, shorter, max_longer, expected, interpolation, scene):
    transform = ResizeShorter(shorter=shorter, max_longer=max_longer, interpolation=interpolation)
    assert transform.output_size(size) == expected
    assert transform(scene((), *size)).size == expected


def test_resize_shorter_draws_one_of_its_choices_evenly(scene):
    torch.manual_seed(0)
    transform = ResizeShorter(shorter=(10, 20, 30))
    drawn = [transform(scene()).size for _ in range(300)]
    assert set(drawn) == {(10, 13), (20, 27), (30, 40)}
    assert min(drawn.count(size) for size in set(drawn)) > 70


def test_one_choice_needs_no_draw(scene):
    before = torch.get_rng_state()
    assert ResizeShorter(shorter=(15,))(scene()).size == (15, 20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "shorter: 80, max_longer: 70",
            "expected max_longer >= shorter (80), got 70. Raise max_longer, or leave it out.",
        ),
        (
            "shorter: [60, 80], max_longer: 70",
            "expected max_longer >= shorter (80), got 70. Raise max_longer, or leave it out.",
        ),
        ("shorter: []", "shorter: expected at least one number of pixels, got an empty list. Add one."),
    ],
)
def test_resize_shorter_needs_a_size_and_a_limit_that_leaves_room(settings, message):
    text = f"root: /data\ntrain_transforms:\n- {{type: resize_shorter, {settings}}}"
    with pytest.raises(ConfigError) as raised:
        validate(DataConfig, parse_yaml(text, "recipe.yaml", Path("/")))
    assert str(raised.value) == f"recipe.yaml:3: train_transforms[0]: {message}"


# --- pixels ----------------------------------------------------------------------------------------------


def bilinear(pixels, size, step):
    """Interpolate pixels (H, W) one by one: the two nearest in each direction, weighted by their distance."""
    result = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            source = [(place + 0.5) * step - 0.5 for place in (y, x)]
            value = 0.0
            for j in (0, 1):
                for i in (0, 1):
                    near = [int(np.floor(source[0])) + j, int(np.floor(source[1])) + i]
                    weight = np.prod([1 - abs(place - whole) for place, whole in zip(source, near, strict=True)])
                    row, column = (min(max(k, 0), n - 1) for k, n in zip(near, pixels.shape, strict=True))
                    value += weight * pixels[row, column]
            result[y, x] = value
    return result


@pytest.mark.parametrize("factor", [0.37, 0.5, 0.98, 1.02, 1.6, 2.9])
def test_opencv_interpolation_takes_steps_of_the_factor_not_of_the_sides(factor, scene):
    image = scene((), 11, 33).image
    size = (round(11 * factor), round(33 * factor))
    found = resize_image(image, size, "opencv", factor)
    expected = bilinear(image[0].numpy(), size, 1 / factor)
    assert np.abs(found[0].numpy() - expected).max() <= 0.5 + 1e-3  # rounding to grey levels


def test_an_image_that_has_the_size_is_left_alone(scene):
    image = scene((), 11, 33).image
    assert resize_image(image, (11, 33), "opencv", 1.01) is image


def test_antialias_is_pillows_bilinear(scene):
    image = scene((), 60, 80).image
    expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((33, 21), Image.Resampling.BILINEAR))
    found = resize_image(image, (21, 33), "antialias").permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


GOLDEN_SHORTER = {
    "keep_ar_resize_800": (800, {}),
    "keep_ar_resize_down": (50, {}),
    "keep_ar_resize_maxsize": (800, {"height": 60, "width": 200}),
}


@pytest.mark.parametrize("name", GOLDEN_SHORTER)
def test_united_perceptions_keep_ar_resize(name, golden_scene, assert_golden):
    shorter, size = GOLDEN_SHORTER[name]
    transform = ResizeShorter(shorter=shorter, max_longer=1333, interpolation="opencv")
    assert_golden(name, transform(golden_scene(**size)), grey_levels=1)


def test_united_perceptions_choice_of_scales(golden_scene, assert_golden, seed_all):
    scales = (640, 672, 704, 736, 768, 800)
    transform = ResizeShorter(shorter=scales, max_longer=1333, interpolation="opencv")
    seed_all(3)
    shorter = int(np.random.choice(scales))
    assert_golden("keep_ar_resize_multi_seed3", transform.resize(golden_scene(), shorter), grey_levels=1)


@pytest.mark.parametrize(("name", "size"), [("fix_output_resize", (256, 192)), ("fix_output_resize_1024", (1024,) * 2)])
def test_united_perceptions_fix_output_resize(name, size, golden_scene, assert_golden):
    assert_golden(name, Resize(size=size, interpolation="opencv")(golden_scene()), grey_levels=1)


@pytest.mark.parametrize(("size", "factor"), [((50, 67), 5 / 3), ((17, 61), None), ((19, 25), 0.63)])
def test_opencv_interpolation_gives_the_bits_of_torchs_kernel_for_separate_colours(size, factor):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    factors = (factor, factor) if factor else (size[0] / 30, size[1] / 40)
    plain = torch.ops.aten.upsample_bilinear2d(image.contiguous()[None].float(), size, False, *factors)[0]
    for memory in (image, image.contiguous()):
        resized = resize_image(memory, size, "opencv", factor)
        assert torch.equal(resized, plain.round().to(torch.uint8))
        assert resized.permute(1, 2, 0).is_contiguous()
