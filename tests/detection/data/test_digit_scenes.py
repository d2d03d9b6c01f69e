import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsedet.common.errors import MissingExtraError, StorageError
from sparsedet.detection.data import digit_scenes
from sparsedet.detection.data.check import check_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.digit_scenes import make_digit_scenes

# What the data set is: change it only together with digit_scenes.VERSION.
PIXELS = "2d502bfbae9bfe960545ee58ff8296d4594bcfdf997df8c9a6a51950b8e58f53"
ANNOTATIONS = {
    "train": "6c658c21e4b96f2abb6239a24a31a52e5a62aa0fa2d5b93c9b5f25295963c705",
    "val": "18c992a7e1ad69ef53f1c0f96f0e7e85d40f282ecb2ba741c852aeb5cd274174",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_digit_scenes(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def small(monkeypatch):
    """Make only five images, and count how often they are made."""
    monkeypatch.setattr(digit_scenes, "NUM_IMAGES", {"train": 3, "val": 2})
    made = []
    write_png = digit_scenes._write_png

    def counted(path, pixels):
        made.append(path)
        write_png(path, pixels)

    monkeypatch.setattr(digit_scenes, "_write_png", counted)
    return made


def test_pixels_and_annotations_are_the_same_each_time(folder):
    digest = hashlib.sha256()
    for path in sorted((folder / "images").iterdir()):
        digest.update(np.asarray(Image.open(path)).tobytes())
    assert digest.hexdigest() == PIXELS
    for split, expected in ANNOTATIONS.items():
        data = json.loads((folder / f"annotations/{split}.json").read_text())
        assert hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest() == expected


def test_it_is_a_sound_data_set_of_800_and_200_images(folder):
    train, val = (split.report() for split in check_splits(DataConfig(root=folder)))
    assert train.warnings + train.faults + val.warnings + val.faults == ()
    assert (train.num_images, val.num_images) == (800, 200)
    for split in (train, val):
        assert list(split.boxes_per_category) == ["0", "1", "4", "7"]
        counts = np.array(list(split.boxes_per_category.values()))
        assert counts.min() > 0.8 * counts.mean()
        assert 0.02 < split.num_images_without_annotations / split.num_images < 0.08
        assert 2 < split.num_boxes / split.num_images < 3


def test_digits_are_16_to_60_pixels_high_and_overlap_little(folder):
    data = json.loads((folder / "annotations/train.json").read_text())
    by_image = {}
    for annotation in data["annotations"]:
        left, top, width, height = annotation["bbox"]
        assert 14 <= height <= 60
        assert left >= 0
        assert top >= 0
        assert max(left + width, top + height) <= 128
        by_image.setdefault(annotation["image_id"], []).append((left, top, left + width, top + height))
    assert {len(boxes) for boxes in by_image.values()} == {1, 2, 3, 4}
    for boxes in by_image.values():
        grid = np.zeros((128, 128), int)
        for left, top, right, bottom in boxes:
            grid[top:bottom, left:right] += 1
        assert (grid > 1).sum() <= 0.35 * (grid > 0).sum()


def test_splits_share_neither_digits_nor_photographs():
    train, val = digit_scenes._materials().values()
    for digit in digit_scenes.CLASSES:
        assert not {d.tobytes() for d in train.digits[digit]} & {d.tobytes() for d in val.digits[digit]}
    for left, right in zip(train.photographs, val.photographs, strict=True):
        assert left.shape[0] == right.shape[0]
        assert min(left.shape[1], right.shape[1]) >= 128
        assert not np.shares_memory(left, right)


def test_the_boxes_are_the_ink_of_the_digits():
    cells = np.zeros((8, 8), np.int64)
    cells[1:7, 3:5] = 16  # a stroke of 6 x 2 cells
    opacity = digit_scenes._enlarge(cells, 100)  # 10 pixels a cell
    assert opacity.shape == pytest.approx((60, 20), abs=8)
    assert opacity.max() == 255
    assert (opacity[[0, -1]].max(axis=1) >= 96).all()


def test_it_is_made_once(tmp_path, small):
    make_digit_scenes(tmp_path)
    assert len(small) == 5
    assert make_digit_scenes(tmp_path) == tmp_path
    assert len(small) == 5


@pytest.mark.parametrize("lost", ["images/val_001.png", "annotations/train.json", "digit_scenes.json"])
def test_an_incomplete_folder_is_made_anew(tmp_path, small, lost):
    make_digit_scenes(tmp_path)
    content = (tmp_path / lost).read_bytes()
    (tmp_path / lost).unlink()
    make_digit_scenes(tmp_path)
    assert (tmp_path / lost).read_bytes() == content
    assert len(small) == 10


@pytest.mark.parametrize("marker", ["{", '{"version": 0}'])
def test_a_damaged_or_older_folder_is_made_anew(tmp_path, small, marker):
    make_digit_scenes(tmp_path)
    (tmp_path / "digit_scenes.json").write_text(marker)
    make_digit_scenes(tmp_path)
    assert len(small) == 10


def test_changed_annotations_are_made_anew(tmp_path, small):
    make_digit_scenes(tmp_path)
    path = tmp_path / "annotations/val.json"
    content = path.read_text()
    path.write_text(content.replace('"category_id": 1', '"category_id": 2'))
    make_digit_scenes(tmp_path)
    assert path.read_text() == content


@pytest.mark.parametrize("module", ["skimage", "sklearn.datasets"])
def test_missing_extra(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as raised:
        make_digit_scenes(tmp_path / "digits")
    message = str(raised.value)
    assert message.startswith("digit scenes: expected scikit-learn and scikit-image to be installed, got '")
    assert message.endswith("'. Run: pip install 'sparsedet[demo]'.")
    assert not (tmp_path / "digits").exists()


def test_a_full_disk_is_said(tmp_path, monkeypatch, small):
    def fail(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(StorageError) as raised:
        make_digit_scenes(tmp_path)
    assert "No space left on device" in str(raised.value)
