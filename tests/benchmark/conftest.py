"""The four detectors at a small size, their weights by United-Perception's names, and checkpoints of them."""

import json

import pytest
import torch

from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.upstream.names import upstream_names
from sparsedet.common.checkpoint import save_checkpoint
from sparsedet.common.config import dump
from sparsedet.detection.data.coco import Category
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.models import FasterRCNNConfig, FPNConfig, ResNetConfig, RetinaHeadConfig, RetinaNetConfig
from sparsedet.detection.optimization import TrainingConfig
from sparsedet.sparsity import Sparsifier

NECK = FPNConfig(channels=16)
DETECTORS = {
    "C1": RetinaNetConfig(
        backbone=ResNetConfig(width=16),
        neck=FPNConfig(channels=16, norm="none"),
        head=RetinaHeadConfig(norm="none", num_convs=2),
    ),
    "C2": RetinaNetConfig(backbone=ResNetConfig(width=16), neck=NECK),
    "C3": RetinaNetConfig(
        backbone=ResNetConfig(width=16), neck=NECK, head=RetinaHeadConfig(iou_branch=True, class_major=True)
    ),
    "C4": FasterRCNNConfig(
        backbone=ResNetConfig(type="resnet50", width=16, levels=(2, 3, 4, 5)),
        neck=FPNConfig(channels=16, extra="pool", norm="none"),
        roi_head={"channels": 16},
    ),
}
CATEGORIES = (Category(id=3, name="bright"), Category(id=7, name="dark"))


@pytest.fixture
def small_detectors():
    """Configuration of each of the four detectors at a small size."""
    return DETECTORS


@pytest.fixture
def categories():
    """Two categories."""
    return CATEGORIES


@pytest.fixture
def build():
    """Function that builds a detector for two classes with the random weights of a seed."""

    def build_with_seed(config, seed, num_classes=2):
        torch.manual_seed(seed)
        return config.build(num_classes)

    return build_with_seed


@pytest.fixture
def upstream():
    """Function of a model: its state dict by United-Perception's names."""

    def rename(model):
        names = upstream_names(model)
        return {name: value for key, value in model.state_dict().items() for name in names[key]}

    return rename


@pytest.fixture
def assert_same():
    """Function that checks that two models hold the same bits under the same names."""

    def check(model, other):
        for (name, value), (theirs, expected) in zip(
            model.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert name == theirs
            assert value.numpy().tobytes() == expected.numpy().tobytes(), name

    return check


@pytest.fixture
def recipe_of():
    """Function of a detector's configuration and more fields: a recipe with it."""

    def recipe(detector, data=None, **fields):
        return Recipe(
            data=DataConfig(root="data", **(data or {})),
            detector=detector,
            training=TrainingConfig(steps=7, batch_size=2),
            **fields,
        )

    return recipe


@pytest.fixture
def save():
    """Function that writes a checkpoint of sparsedet as a run of seven steps does."""

    def write(path, recipe, model, categories=CATEGORIES, sparsifier=None):
        content = {
            "experiment": "small",
            "recipe": json.dumps(dump(recipe)),
            "categories": [[category.id, category.name] for category in categories],
            "level": 0,
            "step": 7,
            "metrics": {},
            "model": model.state_dict(),
            "sparsifier": None if sparsifier is None else sparsifier.state_dict(),
            "trainer": {},
        }
        save_checkpoint(path, content)

    return write


@pytest.fixture
def save_pruned(small_detectors, build, recipe_of, save):
    """Function that writes a checkpoint of a detector pruned by a sparsity section."""

    def write(path, sparsity, name="C2"):
        model = build(small_detectors[name], 0)
        recipe = recipe_of(small_detectors[name], sparsity=sparsity)
        sparsifier = Sparsifier(model, recipe.sparsity)
        sparsifier.prune_(0)
        save(path, recipe, model, sparsifier=sparsifier)

    return write
