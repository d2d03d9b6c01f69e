from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sparsedet.detection.data.coco import Annotation, Category, CocoDataset, ImageRecord
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.loader import Batch, val_loader
from sparsedet.detection.data.samplers import evaluation_indices
from sparsedet.detection.data.transforms import ResizeShorter
from sparsedet.detection.evaluation import evaluate
from sparsedet.detection.inference import detect
from sparsedet.detection.models import FPNConfig, ResNetConfig, RetinaHeadConfig, RetinaNetConfig
from sparsedet.detection.structures import Detections, Target


class Echo(nn.Module):
    """Finds one box, the lower right quarter, with the mean of the image as score; refuses to be in train mode."""

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        return images.mean(dim=(1, 2, 3))

    def detect(self, outputs, image_sizes):
        if float(outputs[0]) < 0:
            raise ValueError("negative")
        boxes = [torch.tensor([[w / 2, h / 2, w, h]]) for h, w in image_sizes]
        return [
            Detections(box, score[None], torch.tensor([1])) for box, score in zip(boxes, outputs.float(), strict=True)
        ]


def batch(value):
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (4, 8))
    return Batch(torch.full((1, 3, 4, 8), value), [target], (11,), ((40, 160),))


@pytest.mark.parametrize("is_training", [True, False])
def test_results_are_in_pixels_of_the_original_and_the_mode_is_restored(is_training):
    model = Echo().train(is_training)
    (result,) = detect(model, [batch(0.5)], (3, 7), torch.device("cpu"))
    assert result == {"image_id": 11, "category_id": 7, "bbox": [80.0, 20.0, 80.0, 20.0], "score": 0.5}
    assert model.training is is_training
    with pytest.raises(ValueError, match="negative"):
        detect(model, [batch(-1.0)], (3, 7), torch.device("cpu"))
    assert model.training is is_training


# --- batches of images of different sizes ----------------------------------------------------------------

SIZES = [(64, 48), (48, 64), (80, 48), (64, 50), (49, 64), (64, 48), (40, 96)]  # width, height


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of different sizes, each with a box; the last has none."""
    root = tmp_path_factory.mktemp("sizes")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    records, annotations = [], []
    for number, (width, height) in enumerate(SIZES, start=1):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        records.append(ImageRecord(number, f"{number}.png", width, height))
        box = (5.0, 5.0, width * 0.6, height * 0.6)
        annotations.append(Annotation(number, number, 1 + number % 2, box, box[2] * box[3], False))
    categories = (Category(1, "odd"), Category(2, "even"))
    coco = CocoDataset(root / "x.json", root / "images", tuple(records), categories, tuple(annotations[:-1]), "")
    config = DataConfig(root=root, val_transforms=(ResizeShorter(shorter=48),))
    return DetectionDataset(coco, config, is_train=False)


@pytest.fixture(scope="module")
def model():
    """A small detector with random weights, whose scores lie far apart."""
    torch.manual_seed(0)
    config = RetinaNetConfig(
        backbone=ResNetConfig(width=16, levels=(3, 4)),
        neck=FPNConfig(channels=16, num_levels=2),
        head=RetinaHeadConfig(num_convs=1, prior=0.3, init_std=0.3),
    )
    return config.build(2)


def found(model, images, batch_size):
    return detect(model, val_loader(images, batch_size, model.stride), (1, 2), torch.device("cpu"))


def assert_same(results, expected):
    assert len(results) == len(expected) > 100
    for one, other in zip(results, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_batch_size_changes_no_result(model, images):
    expected = found(model, images, 1)
    assert [row["image_id"] for row in expected] == sorted(row["image_id"] for row in expected)
    truth = images.coco.ground_truth()
    truth["annotations"] = [  # so that some of what it finds is right
        {**row, "id": number, "area": 500.0, "iscrowd": 0} for number, row in enumerate(expected[::9], start=1)
    ]
    ap = evaluate(truth, expected)["ap"]
    assert 0.05 < ap < 0.95
    for batch_size in (2, 7):
        results = found(model, images, batch_size)
        assert_same(results, expected)
        assert evaluate(truth, results)["ap"] == pytest.approx(ap, abs=1e-4)


def test_sharing_the_images_out_among_processes_changes_no_result(model, images):
    expected = found(model, images, 3)
    shares = []
    for rank in range(3):
        own = tuple(images.coco.images[index] for index in evaluation_indices(len(images), 3, rank))
        ids = {image.id for image in own}
        annotations = tuple(entry for entry in images.coco.annotations if entry.image_id in ids)
        coco = replace(images.coco, images=own, annotations=annotations)
        shares += found(model, DetectionDataset(coco, images.config, is_train=False), 3)
    assert_same(sorted(shares, key=lambda row: row["image_id"]), expected)
