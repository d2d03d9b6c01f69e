"""A small model and MSBench's configurations for it, written as MSBench's users write them."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Current folder, where scripts leave their files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_model():
    """Function that builds the same small classifier every time: 16x32x3x3, 32x32x1x1 and 32x10 weights."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    return make


@pytest.fixture
def level_wise():
    """Function of arguments of AmbaLevelPruneScheduler: a configuration."""

    def make(**kwargs):
        kwargs = {"total_iters": 8, "sparsity_table": [30, 60], "prun_algo": 0} | kwargs
        return {
            "scheduler": {"type": "AmbaLevelPruneScheduler", "kwargs": kwargs},
            "mask_generator": {"type": "NormalMaskGenerator"},
            "fake_sparse": {"type": "FakeSparse"},
        }

    return make


@pytest.fixture
def train_step():
    """Function of a model and its optimizer that trains on a batch made from a seed."""

    def step(model, optimizer, seed):
        batch = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return step


@pytest.fixture
def zeros_of():
    """Function of a model or a state dict: number of zeros of each weight with more than one dimension."""

    def count(model):
        state = model.state_dict() if isinstance(model, nn.Module) else model
        return {name: int((value == 0).sum()) for name, value in state.items() if value.ndim > 1}

    return count
