"""Boxes are where they belong, scores below the threshold are not drawn, and panels stand in order."""

import io
import json

import pytest
from PIL import Image

from sparsedet.common.errors import ConfigError, DatasetError
from sparsedet.report.pictures import (
    Box,
    draw_boxes,
    draw_panel,
    experiments_with_strips,
    join_panels,
    read_samples,
    sample_strips,
    to_jpeg,
)
from sparsedet.report.run import load_run

TITLE = 20  # height of the title above each panel
FOUR, NINE = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)
GREY = (128, 128, 128)
NAMES = {4: "four", 9: "nine"}


def grey(width: int = 128, height: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def test_box_is_drawn_at_twice_its_place_in_the_colour_of_its_class():
    panel = draw_panel(grey(), "ground truth", [Box((32, 32, 64, 64), 4)], NAMES)
    assert panel.size == (256, 256 + TITLE)
    for x, y in ((64, 128), (65, 128), (190, 128), (191, 128), (128, 190), (128, 191)):
        assert panel.getpixel((x, y + TITLE)) == FOUR
    for x, y in ((63, 128), (66, 128), (189, 128), (192, 128), (128, 128), (128, 192)):
        assert panel.getpixel((x, y + TITLE)) == GREY
    assert panel.getpixel((200, 2)) == (255, 255, 255)


def test_tag_stands_above_its_box_or_inside_at_the_upper_edge():
    above = draw_panel(grey(), "", [Box((32, 32, 64, 64), 4)], NAMES)
    assert [above.getpixel((65, y + TITLE)) for y in (49, 50)] == [GREY, FOUR]
    inside = draw_panel(grey(), "", [Box((32, 0, 64, 64), 4)], NAMES)
    assert inside.getpixel((80, 13 + TITLE)) == FOUR
    assert inside.getpixel((80, 14 + TITLE)) == GREY


def test_tag_stays_in_the_picture_at_the_right_edge():
    panel = draw_panel(grey(), "", [Box((120, 60, 8, 8), 9, 0.5)], NAMES)
    row = [panel.getpixel((x, 107 + TITLE)) for x in range(256)]
    assert row[255] == NINE
    assert row.index(NINE) < 220


@pytest.mark.parametrize(("size", "expected"), [((640, 480), (256, 192)), ((10, 40), (64, 256)), ((256, 1), (256, 1))])
def test_the_longer_side_is_scaled(size, expected):
    width, height = expected
    assert draw_panel(grey(*size), "", [], NAMES).size == (width, height + TITLE)


@pytest.mark.parametrize("xywh", [(0, 0, 0, 0), (-5, -5, 300, 300), (127.9, 127.9, 0.01, 0.01)])
def test_odd_boxes_do_not_break_a_report(xywh):
    assert draw_panel(grey(), "", [Box(xywh, 77, 0.9)], NAMES).size == (256, 276)


def test_lines_and_letters_grow_with_large_images():
    image = grey(1280, 960)
    draw_boxes(image, [Box((200, 300, 400, 200), 4)], NAMES)
    row = [image.getpixel((x, 400)) for x in range(195, 210)]
    assert [x for x, color in enumerate(row, start=195) if color == FOUR] == [200, 201, 202, 203]
    column = [image.getpixel((201, y)) for y in range(260, 300)]
    assert column.index(FOUR) == 300 - 28 - 260


def test_a_name_of_several_lines_is_written_in_one():
    draw_boxes(grey(), [Box((10, 50, 40, 40), 4, 0.5)], {4: "a\nb\tc"})


def test_panels_side_by_side():
    strip = join_panels([Image.new("RGB", (10, 30), c) for c in ("black", "black", "black")])
    assert strip.size == (38, 30)
    assert [strip.getpixel((x, 15))[0] for x in (9, 10, 13, 14, 37)] == [0, 255, 255, 0, 0]


def test_strip_holds_ground_truth_dense_and_each_level(run_dir):
    run = load_run(run_dir)
    ((image_id, strip),) = sample_strips(run, run.experiments[1])
    assert image_id == 7
    assert strip.size == (4 * 256 + 3 * 4, 276)
    for panel in range(4):
        assert strip.getpixel((260 * panel + 64, 128 + TITLE)) == FOUR


def test_scores_below_the_threshold_and_other_images_are_not_drawn(run_dir):
    run = load_run(run_dir)
    ((_, strip),) = sample_strips(run, run.experiments[1])
    colours = {colour for _, colour in strip.getcolors(strip.width * strip.height)}
    assert FOUR in colours
    assert NINE not in colours  # its boxes: score 0.29 here, 0.99 on another image
    path = run_dir / "lamp" / "sparsity-0.90" / "detections.json"
    path.write_text(json.dumps([{"image_id": 7, "category_id": 9, "bbox": [4, 80, 30, 30], "score": 0.3}]))
    ((_, strip),) = sample_strips(run, run.experiments[1])
    assert strip.getpixel((260 * 3 + 8, 180 + TITLE)) == NINE


def test_level_without_detections_has_no_panel(run_dir):
    (run_dir / "lamp" / "sparsity-0.30" / "detections.json").unlink()
    run = load_run(run_dir)
    ((_, strip),) = sample_strips(run, run.experiments[1])
    assert strip.width == 3 * 256 + 2 * 4


def test_sparse_experiments_have_strips_or_else_the_dense_ones(run_dir, tmp_path, make):
    assert [e.name for e in experiments_with_strips(load_run(run_dir))] == ["lamp", "energy", "ampere"]
    make.suite(tmp_path, "dense", "lamp")
    make.add(tmp_path, make.record())
    make.samples(tmp_path, "dense")
    run = load_run(tmp_path)
    (dense,) = experiments_with_strips(run)
    ((_, strip),) = sample_strips(run, dense)
    assert strip.width == 2 * 256 + 4


def test_experiment_without_samples_has_no_strips(run_dir):
    (run_dir / "lamp" / "samples.json").unlink()
    run = load_run(run_dir)
    assert list(sample_strips(run, run.experiments[1])) == []


def test_samples_and_names(run_dir):
    samples, names = read_samples(load_run(run_dir).experiments[1])
    assert names == NAMES
    assert [(s.image_id, s.path, s.boxes) for s in samples] == [
        (7, run_dir / "lamp" / "samples" / "7.png", (Box((32, 32, 64, 64), 4),))
    ]


@pytest.mark.parametrize("damage", ["[]", '{"images": []}', "{"])
def test_damaged_samples_are_an_error(run_dir, damage):
    (run_dir / "lamp" / "samples.json").write_text(damage)
    run = load_run(run_dir)
    with pytest.raises(ConfigError, match=r"lamp/samples.json: expected JSON as a run writes it, got"):
        list(sample_strips(run, run.experiments[1]))


def test_damaged_detections_are_an_error(run_dir):
    (run_dir / "lamp" / "sparsity-0.30" / "detections.json").write_text('[{"image_id": 7, "score": 1.0}]')
    run = load_run(run_dir)
    with pytest.raises(
        ConfigError, match=r"detections.json: expected JSON as a run writes it, got KeyError \('bbox'\)"
    ):
        list(sample_strips(run, run.experiments[1]))


@pytest.mark.parametrize(("content", "found"), [(None, "FileNotFoundError"), (b"no image", "UnidentifiedImageError")])
def test_missing_or_damaged_image_is_an_error_that_names_it(run_dir, content, found):
    path = run_dir / "lamp" / "samples" / "7.png"
    path.unlink()
    if content:
        path.write_bytes(content)
    run = load_run(run_dir)
    with pytest.raises(DatasetError) as raised:
        list(sample_strips(run, run.experiments[1]))
    assert str(raised.value) == (
        f"{path}: expected the sample image that samples.json names, got {found}. "
        "Put it back, or delete samples.json for a report without pictures."
    )


def test_jpeg():
    image = Image.open(io.BytesIO(to_jpeg(grey())))
    assert (image.format, image.size) == ("JPEG", (128, 128))


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../x.png"},
        {"file": "/etc/x.png"},
        {"file": "samples/../x.png"},
        {"file": "samples/x.eps"},
        {"file": "samples/link.png"},
        {"image_id": "../../x"},
        {"image_id": None},
        {"boxes": [{"bbox": [0, 0, 1e300, 1], "category_id": 4}]},
        {"boxes": [{"bbox": [0, float("nan"), 1, 1], "category_id": 4}]},
        {"boxes": [{"bbox": [0, 0, 1, 1], "category_id": []}]},
    ],
)
def test_samples_stay_in_their_folder_and_within_bounds(run_dir, tmp_path, change):
    lamp = load_run(run_dir).experiments[1]
    grey().save(tmp_path / "secret.png")
    (lamp.folder / "samples" / "link.png").symlink_to(tmp_path / "secret.png")
    path = lamp.folder / "samples.json"
    content = json.loads(path.read_text())
    content["images"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"samples\.json: expected JSON as a run writes it"):
        read_samples(lamp)


def test_only_png_of_a_sane_size_is_opened(run_dir, monkeypatch):
    lamp = load_run(run_dir).experiments[1]
    grey().save(lamp.folder / "samples" / "7.png", format="GIF")
    with pytest.raises(DatasetError, match=r"7\.png: expected the sample image that samples\.json names"):
        list(sample_strips(load_run(run_dir), lamp))
    grey().save(lamp.folder / "samples" / "7.png")
    assert list(sample_strips(load_run(run_dir), lamp))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DatasetError, match="got DecompressionBombWarning"):
        list(sample_strips(load_run(run_dir), lamp))


def test_class_names_that_no_font_has_are_drawn(run_dir):
    lamp = load_run(run_dir).experiments[1]
    path = lamp.folder / "samples.json"
    path.write_text(path.read_text().replace('"four"', '"\\ud800' + "x" * 10**5 + '"'))
    assert read_samples(lamp)[1][4].startswith(r"\ud800x")
    assert list(sample_strips(load_run(run_dir), lamp))
