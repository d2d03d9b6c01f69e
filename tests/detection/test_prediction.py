"""Detections in image files, against what evaluation finds in the same images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.common.errors import DatasetError
from sparsedet.detection import prediction as module
from sparsedet.detection.data.coco import Category
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.transforms import ResizeShorter
from sparsedet.detection.models import FPNConfig, ResNetConfig, RetinaHeadConfig, RetinaNetConfig
from sparsedet.detection.prediction import Prediction, Skipped, find_images, predict

CATEGORIES = (Category(3, "bright"), Category(7, "dark"))
CPU = torch.device("cpu")
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def model():
    """A small detector with random weights, whose scores lie far apart."""
    torch.manual_seed(0)
    config = RetinaNetConfig(
        backbone=ResNetConfig(width=16, levels=(3, 4)),
        neck=FPNConfig(channels=16, num_levels=2),
        head=RetinaHeadConfig(num_convs=1, prior=0.3, init_std=0.3),
    )
    return config.build(2).eval()


def save(path, size, seed, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def config(tmp_path):
    """Data configuration that needs no data; images without boxes are not evaluated, which must not matter."""
    return DataConfig(
        root=tmp_path / "none", val_transforms=(ResizeShorter(shorter=48),), val_without_annotations=False
    )


def by_name(outcomes):
    return {outcome.path.name: outcome for outcome in outcomes}


def test_what_is_found_does_not_depend_on_the_batch(model, config, tmp_path):
    sizes = [(64, 48), (48, 64), (80, 48), (64, 50), (49, 64), (64, 48)]
    paths = [save(tmp_path / f"{n}.png", size, n) for n, size in enumerate(sizes)]
    alone, together, worked = (
        by_name(predict(model, config, CATEGORIES, paths, CPU, **options))
        for options in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "num_workers": 1})
    )
    assert [alone[path.name].image_id for path in paths] == [1, 2, 3, 4, 5, 6]
    for name, expected in alone.items():
        assert len(expected.results) > 20
        for found in together[name], worked[name]:
            assert (found.image_id, found.width, found.height) == (expected.image_id, expected.width, expected.height)
            for one, other in zip(found.results, expected.results, strict=True):
                assert one["category_id"] == other["category_id"]
                assert one["score"] == pytest.approx(other["score"], abs=1e-5)
                assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_boxes_are_in_pixels_of_the_upright_image(model, config, tmp_path):
    upright = save(tmp_path / "upright.png", (80, 48), 0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored turned to the left
    with Image.open(upright) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    one, other = predict(model, config, CATEGORIES, [upright, tmp_path / "turned.png"], CPU)
    assert (other.width, other.height) == (one.width, one.height) == (80, 48)
    assert [row["bbox"] for row in other.results] == [row["bbox"] for row in one.results]
    large = tmp_path / "large.png"
    with Image.open(upright) as image:
        image.resize((160, 96), Image.Resampling.NEAREST).save(large)
    (twice,) = predict(model, config, CATEGORIES, [large], CPU)
    assert max(row["bbox"][0] + row["bbox"][2] for row in twice.results) > 100
    assert all(row["bbox"][0] + row["bbox"][2] <= 160 + 1e-3 for row in twice.results)


def test_results_fall_by_score_and_end_at_the_least(model, config, tmp_path):
    path = save(tmp_path / "a.png", (64, 48), 0)
    (everything,) = predict(model, config, CATEGORIES, [path], CPU)
    scores = [row["score"] for row in everything.results]
    assert scores == sorted(scores, reverse=True)
    middle = scores[len(scores) // 2]
    (best,) = predict(model, config, CATEGORIES, [path], CPU, min_score=middle)
    assert best.results == tuple(row for row in everything.results if row["score"] >= middle)
    assert {row["image_id"] for row in best.results} == {1}
    assert {row["category_id"] for row in everything.results} == {3, 7}


def bad_files(folder):
    good = save(folder / "good.png", (64, 48), 0)
    jpeg = save(folder / "cut.jpg", (64, 48), 1)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    return good, [jpeg, folder / "empty.png", folder / "text.png", folder / "folder.png", folder / "none.png"]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_bad_files_are_passed_over_and_named(model, config, tmp_path, batch_size):
    good, bad = bad_files(tmp_path)
    outcomes = by_name(predict(model, config, CATEGORIES, [*bad, good], CPU, batch_size=batch_size))
    assert len(outcomes) == 6
    for path in bad:
        assert isinstance(outcomes[path.name], Skipped)
        assert outcomes[path.name].reason.startswith(f"{path}: expected an image file") or "whole image" in (
            outcomes[path.name].reason
        )
    assert isinstance(outcomes["good.png"], Prediction)
    assert outcomes["good.png"].image_id == 6
    (alone,) = predict(model, config, CATEGORIES, [good], CPU)
    assert [row["bbox"] for row in outcomes["good.png"].results] == [row["bbox"] for row in alone.results]


def test_only_bad_files(model, config, tmp_path):
    _, bad = bad_files(tmp_path)
    assert all(isinstance(outcome, Skipped) for outcome in predict(model, config, CATEGORIES, bad, CPU))


def test_whatever_a_decoder_raises_skips_the_file(model, config, tmp_path, monkeypatch):
    def fails(path):
        raise KeyError("tile")

    path = save(tmp_path / "odd.png", (64, 48), 0)
    monkeypatch.setattr(module, "read_header", fails)
    (skipped,) = predict(model, config, CATEGORIES, [path], CPU)
    assert skipped == Skipped(path, f"{path}: expected an image file, got KeyError: 'tile'")


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_images_of_any_shape(model, config, tmp_path, size):
    path = save(tmp_path / "thin.png", size, 0)
    (outcome,) = predict(model, config, CATEGORIES, [path], CPU)
    assert isinstance(outcome, Prediction)
    assert (outcome.width, outcome.height) == size


def test_find_images(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner.png").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "inner/c.png", "ü.webp"):
        (folder / name).write_bytes(b"")
    single = tmp_path / "list.txt"  # named by the user, so it is taken; decoding says what is wrong with it
    assert find_images([single, folder, folder / "b.png"]) == (
        single, folder / "a.JPG", folder / "b.png", folder / "ü.webp",
    )  # fmt: skip


def test_what_is_no_image_is_found_too_and_passed_over_with_a_reason(model, config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    paths = find_images([tmp_path / "empty", tmp_path])
    assert paths == (tmp_path / "empty", tmp_path / "gone.png", tmp_path / "pipe.png")
    outcomes = list(predict(model, config, CATEGORIES, paths, CPU))
    assert [outcome.path for outcome in outcomes if isinstance(outcome, Skipped)] == list(paths)


@pytest.mark.parametrize("is_there", [True, False])
def test_no_files_are_an_error(tmp_path, is_there):
    with pytest.raises(DatasetError) as raised:
        find_images([tmp_path] if is_there else [])
    assert str(raised.value).startswith(
        f"images: expected image files, or folders with some, got {tmp_path if is_there else 'nothing'}. Known are AVIF"
    )
