import json

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def data(tmp_path):
    """A data set of three images of 40 x 20 pixels, the second without a box, and a fourth that is not used."""
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    boxes = {1: [4, 5, 8, 10], 3: [0, 0, 10, 10], 4: [1, 1, 2, 2]}
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in range(1, 5)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, box in boxes.items()
        ],
    }
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    return tmp_path


SMALL = ("--copies", "48", "32", "--images", "3", "--shorter", "64", "--max-longer", "90", "--batches", "2")


def test_loaders_and_a_step_are_timed(run, data):
    arguments = (str(data), *SMALL, "--rounds", "1", "--workers", "0", "1", "--steps", "1")
    table, results = run("loader", *arguments)
    assert len(table) == 2 + 2 * 4 + 1
    *loaders, step = results
    assert [result["num_workers"] for result in loaders] == [0] * 4 + [1] * 4
    assert {result["variant"] for result in loaders} == {
        "sparsedet",
        "sparsedet, cached",
        "torchvision",
        "torchvision, all in workers",
    }
    for result in loaders:
        assert result["images_per_s"]["lower"] > 0
        assert (result["over_torchvision"]["median"] == 1) == (result["variant"] == "torchvision")
    assert step["images_per_s"]["median"] > 0
    assert step["input_size"] == [64, 96]  # 60 x 90, padded


def test_both_ways_give_the_network_the_same(load, data, tmp_path):
    loader = load("loader")
    (tmp_path / "copies").mkdir()
    copies = loader.write_copies(loader.DataConfig(root=data), tmp_path / "copies", (48, 32), num_images=1)
    resize = loader.ResizeShorter(shorter=64, max_longer=90, interpolation="opencv")
    dataset = loader.open_splits(copies.model_copy(update={"train_transforms": (resize,)}), seed=0).train
    batch = next(loader.ours(dataset, 1)(0))
    torch.manual_seed(0)
    other = loader.reference(dataset, 1, resize, resize_in_worker=True)(0)
    images, (target,) = next(found for found in other if found[1][0]["boxes"][0, 0] < 30)  # one that is not mirrored
    assert images.shape == batch.images.shape == (1, 3, 64, 96)
    assert (images - batch.images).abs().max() < 0.51 / 255 / 0.224  # ours are rounded to whole grey levels
    assert torch.allclose(target["boxes"], batch.targets[0].boxes_xyxy, rtol=0, atol=1e-4)
    assert batch.targets[0].boxes_xyxy.tolist() == [[9, 15, 27, 45]]  # (4, 5) to (12, 15) of 40 x 20, now 90 x 60
