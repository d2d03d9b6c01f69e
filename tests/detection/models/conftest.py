"""Golden values of United-Perception's own code, and the weights they were made with."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsedet.detection.structures import Target

GOLDEN = Path(__file__).parent / "golden"
ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones


@pytest.fixture(scope="session")
def golden() -> Any:
    """A function: file name in tests/detection/models/golden -> its content."""

    def read(name: str) -> Any:
        path = GOLDEN / name
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return runpy.run_path(str(path)) if path.suffix == ".py" else json.loads(path.read_text())

    return read


@pytest.fixture(scope="session")
def recipe(golden: Any) -> Any:
    """Weights, images and boxes that the golden values of whole detectors were made with."""
    return golden("recipe.py")


@pytest.fixture(scope="module")
def images(recipe: Any) -> torch.Tensor:
    """The two images of the recipe."""
    return torch.from_numpy(recipe["image"]())


@pytest.fixture(scope="session")
def image_sizes(recipe: Any) -> list[tuple[int, int]]:
    """Their sizes without padding."""
    return [tuple(info[:2]) for info in recipe["IMAGE_INFO"]]


@pytest.fixture(scope="session")
def make_targets(recipe: Any, image_sizes: list[tuple[int, int]]) -> Any:
    """A function of the kind of training pass, ``train`` or ``train_ignores`` (with ignore regions): its targets."""

    def make(tag: str) -> list[Target]:
        regions = recipe["IGNORE"] if tag == "train_ignores" else [torch.zeros(0, 4)] * 2
        return [
            Target(
                torch.from_numpy(rows[:, :4]) + ONE_PIXEL,
                torch.from_numpy(rows[:, 4]).long() - 1,
                torch.as_tensor(region) + ONE_PIXEL,
                size,
            )
            for rows, region, size in zip(recipe["GT"], regions, image_sizes, strict=True)
        ]

    return make
