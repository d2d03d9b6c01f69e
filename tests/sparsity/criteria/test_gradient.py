"""Gradient criterion."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Calibration, Gradient, OneShot, Sparsifier, SparsityConfig, Targets, Uniform
from sparsedet.sparsity.weights import find_weights


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def test_scores_worked_out_by_hand():
    # y = w·x, loss (y - t)², gradient 2 (y - t) x
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0]])
    batches = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0]])), (torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0]]))]
    weights = find_weights(model)
    found = Gradient().statistics(model, weights, Calibration(batches, run=mse, loss=mse))["weight"]
    # y = -3: gradient (-6, -12), products 6 and 24; y = 1: gradient (6, 2), products 6 and 4
    assert found.tolist() == [[(6 + 6) / 2, (24 + 4) / 2]]
    only_first = Gradient(num_batches=1).statistics(model, weights, Calibration(batches, run=mse, loss=mse))["weight"]
    assert only_first.tolist() == [[6, 24]]


def test_the_least_important_weights_go():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[0.1, 5.0, 0.2, 3.0]])
    data = [(torch.tensor([[10.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0]]))]
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Gradient(), allocation=Uniform())
    Sparsifier(model, config, calibration=Calibration(data, run=mse, loss=mse)).prune_(0)
    assert torch.equal(model.weight, torch.tensor([[0.1, 0.0, 0.0, 3.0]]))  # 5.0 reads nothing


class NormAndActivation(nn.BatchNorm2d):
    """A norm that holds a module, as timm's BatchNormAct2d."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.activation = nn.ReLU()

    def forward(self, images):
        return self.activation(super().forward(images))


class WithLossInTraining(nn.Module):
    """As torchvision's detectors: the loss in training mode, outputs otherwise."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), NormAndActivation(4))
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)

    def forward(self, images):
        outputs = self.frozen(self.body(images))
        assert self.training
        assert not any(layer.training for layer in self.body)
        return outputs.square().mean()


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_else_changes(mode):
    model = WithLossInTraining().train(mode)
    model.body[1].eval()
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    data = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    calibration = Calibration(data, run=lambda model, batch: model(batch), loss=lambda model, batch: model(batch))
    found = Gradient().statistics(model, find_weights(model), calibration)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model.body[0].weight.grad, torch.ones_like(model.body[0].weight))
    assert model.frozen.weight.grad is None
    assert not model.frozen.weight.requires_grad
    assert found["frozen.weight"].count_nonzero() > 0
    again = Gradient().statistics(model, find_weights(model), calibration)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, "calibration.loss: expected a function that returns the loss of a batch"),
        (lambda model, batch: model(batch), r"expected a function that returns a scalar with a gradient, got shape"),
        (lambda model, batch: 3.0, "got float"),
        (
            lambda model, batch: batch["image"],
            "calibration.loss: expected a function that serves every batch, got Index",
        ),
        (lambda model, batch: model(batch).sum().detach(), r"got shape \(\)"),
        (lambda model, batch: model[0](batch).sum(), "got one that does not depend on '1.weight'"),
        (
            lambda model, batch: model(batch).sum() * torch.inf,
            "expected finite gradients, got inf or NaN at '0.weight'",
        ),
    ],
)
def test_losses_that_cannot_be_used_are_refused(loss, message):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Gradient())
    sparsifier = Sparsifier(
        model, config, calibration=Calibration([torch.randn(4, 3)], lambda model, batch: model(batch), loss)
    )
    with pytest.raises(ConfigError, match=message):
        sparsifier.prune_(0)
    assert model[0].weight.count_nonzero() == 9


@pytest.mark.slow
def test_a_detector_of_torchvision():
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    )
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    batches = [([torch.rand(3, 64, 64)], [target])]
    calibration = Calibration(
        batches,
        run=lambda model, batch: model(batch[0]),
        loss=lambda model, batch: sum(model(*batch).values()),
    )
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.5), criterion=Gradient(), targets=Targets(exclude=("preset:stem",))
    )
    sparsifier = Sparsifier(model.eval(), config, calibration=calibration)
    sparsifier.prune_(0)
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.5, abs=1e-6)
    assert not any(module.training for module in model.modules())
