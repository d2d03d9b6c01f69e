"""What `predict` leaves on the disk, and the few lines of Python in docs/evaluation.md."""

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.prediction import Predictor, predict_to_folder
from sparsedet.common.errors import DatasetError, StorageError
from sparsedet.detection.prediction import Prediction

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def checkpoint(small_detectors, build, recipe_of, save, tmp_path):
    """A checkpoint of a small detector with random weights."""
    config = small_detectors["C2"]
    save(tmp_path / "checkpoint.pt", recipe_of(config), build(config, 0))
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def images(tmp_path):
    """Folder with two images of random pixels and a damaged one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("b", "a" * 200)):
        random = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(random).save(folder / f"{name}.png")
    (folder / "c.jpg").write_bytes(b"damaged")
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def run(checkpoint, paths, folder, min_score=0.0):
    stream = StringIO()
    console = Console(rich=RichConsole(file=stream, width=200, soft_wrap=True))
    content, skipped = predict_to_folder(Predictor.open(checkpoint, "cpu"), paths, folder, min_score, console)
    return content, skipped, stream.getvalue()


def test_the_json_is_coco_and_every_image_has_a_picture(checkpoint, images, tmp_path, capsys):
    content, skipped, said = run(checkpoint, [images], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == content
    coco = COCO(str(tmp_path / "out" / "detections.json"))
    names = [Path(image["file_name"]).name for image in coco.loadImgs(coco.getImgIds())]
    assert names == ["a" * 200 + ".png", "b.png"]
    assert [(image["width"], image["height"]) for image in coco.imgs.values()] == [(96, 64)] * 2
    assert {category["name"] for category in coco.cats.values()} == {"bright", "dark"}
    for annotation in coco.anns.values():
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
    assert len(coco.anns) == sum(len(coco.getAnnIds([image_id])) for image_id in (1, 2)) > 0
    (damaged,) = skipped
    assert damaged.path == images / "c.jpg"
    assert content["skipped"] == [{"file_name": str(images / "c.jpg"), "reason": damaged.reason}]
    assert f"warning: skipped: {images / 'c.jpg'}: expected a whole image file" in said
    assert re.search(r"predict 3/3 images, \d+\.\d images/s", said)
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"000001-{'a' * 50}.jpg", "000002-b.jpg"]
    assert {pixels(path).shape for path in pictures} == {(64, 96, 3)}


def test_pictures_show_what_was_found(checkpoint, images, tmp_path):
    _, _, _ = run(checkpoint, [images / "b.png"], tmp_path / "with")
    content, _, _ = run(checkpoint, [images / "b.png"], tmp_path / "without", min_score=1.0)
    assert content["annotations"] == []
    original = pixels(images / "b.png")
    drawn, plain = (pixels(tmp_path / name / "pictures" / "000001-b.jpg") for name in ("with", "without"))
    assert np.abs(plain - original).mean() < 15 < np.abs(drawn - original).mean()


def test_a_file_that_vanishes_before_it_is_drawn_is_passed_over(checkpoint, images, tmp_path, monkeypatch):
    whole = Predictor.predict

    def vanishing(self, paths, min_score):
        for outcome in whole(self, paths, min_score):
            if isinstance(outcome, Prediction):
                outcome.path.unlink()
            yield outcome

    monkeypatch.setattr(Predictor, "predict", vanishing)
    content, skipped, _ = run(checkpoint, [images / "b.png"], tmp_path / "out")
    assert content["images"] == []
    assert "No such file" in skipped[0].reason


def test_wrong_places_are_refused(checkpoint, tmp_path):
    with pytest.raises(DatasetError):
        run(checkpoint, [], tmp_path / "out")
    with pytest.raises(StorageError):
        run(checkpoint, [checkpoint], checkpoint / "out")


def test_python_of_the_docs_runs(checkpoint, images, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```py\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "street.png").write_bytes((images / "b.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(DOCS), "exec"), {"__name__": "example"})
    assert re.search(r"street\.png: \d+ objects", capsys.readouterr().out)
