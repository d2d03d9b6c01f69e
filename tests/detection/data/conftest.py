"""Tiny COCO data sets, written into the test's own folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsedet.detection.data.check import load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset

Coco = dict[str, Any]


def coco(images: int = 2, boxes: list[list[float]] | None = None) -> Coco:
    """Return `images` images of 40 x 30 pixels and one annotation of each of `boxes`, on the first image."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in range(1, images + 1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 3,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, box in enumerate(boxes or [[2.0, 3.0, 10.0, 8.0]], start=1)
        ],
    }


@pytest.fixture
def make_coco() -> Callable[..., Coco]:
    return coco


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that writes an annotation file and returns its path."""

    def write(data: Any) -> Path:
        path = tmp_path / "train.json"
        path.write_text(json.dumps(data))
        return path

    return write


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a whole data set, with image files, and returns its folder."""

    def make_root(train: Coco, val: Coco | None = None) -> Path:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "images").mkdir()
        if val is None:
            val = json.loads(json.dumps(train))
            for image in val["images"]:
                image["file_name"] = f"val-{image['file_name']}"
        for name, data in ("train", train), ("val", val):
            (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(data))
            for image in data["images"]:
                shape = (image["height"], image["width"], 3)
                pixels = np.random.default_rng(image["id"]).integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / image["file_name"])
        return tmp_path

    return make_root


@pytest.fixture
def dataset(make_root, make_coco):
    """Return a function that makes the training or validation split of seven images."""
    root = make_root(make_coco(images=7))

    def dataset(is_train=True, seed=0, **settings):
        config = DataConfig(root=root, **settings)
        train, val, _ = load_splits(config)
        return DetectionDataset(train if is_train else val, config, is_train, seed)

    return dataset


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """What United-Perception's own transforms and data set made of images of `blocks`."""
    return json.loads((Path(__file__).parent / "golden" / "up_transforms.json").read_text())


@pytest.fixture(scope="session")
def blocks() -> Callable[..., Any]:
    """Return a function that makes the pixels (H, W, 3) of the golden images: blocks of 8 x 8 in random colours."""

    def blocks(height: int = 97, width: int = 131, seed: int = 31) -> Any:
        colors = np.random.RandomState(seed).randint(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
        return np.kron(colors, np.ones((8, 8, 1), np.uint8))[:height, :width]

    return blocks
