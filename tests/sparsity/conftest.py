"""Small models and golden values for the tests of sparsity."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


class Bag(nn.Module):
    """Layers side by side, each called once; the convolutions on squares of 64, 32, 16 … pixels."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self) -> list[Tensor]:
        outputs = []
        for index, layer in enumerate(self.children()):
            weight = layer.weight
            if isinstance(layer, nn.Linear):
                outputs.append(layer(torch.zeros(1, weight.shape[1])))
            else:
                outputs.append(layer(torch.zeros(1, layer.in_channels, *(64 >> index,) * (weight.ndim - 2))))
        return outputs


class TinyDetector(nn.Module):
    """Stem, depthwise and frozen layer, a head called on two scales, a linear layer; names of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv1", nn.Conv2d(3, 16, 3, stride=2, padding=1))
        self.backbone.add_module("depthwise", nn.Conv2d(16, 16, 3, padding=1, groups=16))
        self.backbone.add_module("frozen", nn.Conv2d(16, 32, 1))
        self.backbone.frozen.requires_grad_(False)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.tower = nn.Conv2d(32, 32, 3, padding=1)
        self.cls_pred = nn.Conv2d(32, 4, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.backbone(images).relu()
        coarse = self.down(fine).relu()
        scores = [self.cls_pred(self.tower(feature).relu()) for feature in (fine, coarse)]
        return scores[0], scores[1], self.fc(coarse.mean((2, 3)))


@pytest.fixture
def detector() -> TinyDetector:
    torch.manual_seed(0)
    return TinyDetector()


@pytest.fixture(scope="session")
def bag() -> type[Bag]:
    return Bag


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Read a JSON file of the golden values, or an npz as a dict."""

    def read(name: str) -> Any:
        path = GOLDEN / name
        return dict(np.load(path)) if path.suffix == ".npz" else json.loads(path.read_text())

    return read
