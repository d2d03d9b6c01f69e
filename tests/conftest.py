"""A tiny data set and recipe that the tests of whole runs share."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TINY_RECIPE = """\
data: {{root: {root}}}
detector:
  type: retinanet
  backbone: {{type: resnet18, width: 16, levels: [3, 4]}}
  neck: {{channels: 16, num_levels: 2}}
  head: {{num_convs: 1}}
  anchors: {{scales: [3.0]}}
  post_processing: {{score_threshold: 0.0}}
training:
  steps: 4
  batch_size: 2
  log_every: 1
  optimizer: {{type: adamw, lr: 1e-3}}
evaluation: {{batch_size: 3, num_samples: 2}}
"""


def pytest_configure():
    """Use one thread, here and in subprocesses: tests are tiny, and on a busy machine threads wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def write_split(root: Path, name: str, num_images: int, seed: int) -> None:
    """Write images of 64 px with bright squares (class 3) and dark ones (class 7); the last image has none."""
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for index in range(num_images):
        pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
        for category, shade in ((3, 250), (7, 5)) if index < num_images - 1 else ():
            side = int(random.integers(12, 28))
            x, y = (int(random.integers(0, 64 - side)) for _ in range(2))
            pixels[y : y + side, x : x + side] = shade
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0, "category_id": category}
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + index, **box})
        file_name = f"{name}_{index}.png"
        Image.fromarray(pixels).save(root / "images" / file_name)
        images.append({"id": 10 + index, "file_name": file_name, "width": 64, "height": 64})
    categories = [{"id": 7, "name": "dark"}, {"id": 3, "name": "bright"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def _denormals_as_torch_starts():
    """A run flushes denormals for its whole process; no other test shall see that."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with 6 training and 5 validation images in COCO format, two categories with a gap between their ids."""
    root = tmp_path_factory.mktemp("tiny")
    for folder in ("images", "annotations"):
        (root / folder).mkdir()
    write_split(root, "train", 6, seed=0)
    write_split(root, "val", 5, seed=1)
    return root


@pytest.fixture(scope="session")
def tiny_recipe_text(tiny_data):
    """A recipe that trains a very small detector on `tiny_data` for four steps."""
    return TINY_RECIPE.format(root=tiny_data)


@pytest.fixture
def tiny_recipe(tiny_recipe_text, tmp_path):
    """Path of a file with `tiny_recipe_text`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe_text)
    return path
