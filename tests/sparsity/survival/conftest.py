"""A small network, a step of training, and what must hold whatever was done to either."""

import pytest
import torch
from torch import nn


def make_net():
    """Two convolutions, a norm, and two linear layers that share a weight; the same at every call."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.Linear(32, 32),
        nn.Linear(32, 32),
    )
    net[7].weight = net[6].weight
    return net


def loss_of(model, seed=0):
    images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (model(images) - 1).square().mean()


def train(model, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()


def check_pruned(masks, model):
    """Every pruned entry of `model` is +0.0 to the bit, something is pruned, and what is kept is not zero."""
    assert masks
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        assert not mask.all()
        assert not weight[~mask].float().view(torch.int32).any(), name
        assert (weight[mask] != 0).float().mean() > 0.95, name


@pytest.fixture
def net():
    return make_net()


@pytest.fixture(scope="session")
def fresh_net():
    return make_net


@pytest.fixture(scope="session")
def loss():
    return loss_of


@pytest.fixture(scope="session")
def steps():
    return train


@pytest.fixture(scope="session")
def holds():
    return check_pruned
