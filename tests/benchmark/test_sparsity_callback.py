"""Trainer, sparsifier and average of the weights together."""

import pytest
import torch
from torch import nn

from sparsedet.benchmark.sparsity_callback import SparsityCallback
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.ema import EmaConfig
from sparsedet.detection.lr_schedules import Constant
from sparsedet.detection.optimization import SGD, TrainingConfig
from sparsedet.detection.structures import Target
from sparsedet.detection.trainer import Level, Trainer
from sparsedet.sparsity import LevelWise, Sparsifier, SparsityConfig, Uniform

CONFIG = SparsityConfig(schedule=LevelWise(levels=(0.25, 0.75)), allocation=Uniform())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))

    def losses(self, outputs, targets):
        return {"a": outputs.square().sum()}


def batches(number):
    generator = torch.Generator().manual_seed(1)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (5, 5))
    images = torch.randn(number, 2, 3, 5, 5, generator=generator)
    return [Batch(part, [target] * 2, (1, 2), ((5, 5), (5, 5))) for part in images]


def start(**settings):
    model = Net()
    sparsifier = Sparsifier(model, CONFIG)
    config = TrainingConfig(
        steps=8,
        batch_size=4,
        forward_batch_size=2,
        optimizer=SGD(lr=0.05, momentum=0.9),
        lr_schedule=Constant(warmup=0.0),
        **settings,
    )
    callback = SparsityCallback(sparsifier, lambda: None)
    trainer = Trainer(model, config, 10, torch.device("cpu"), callback=callback)
    sparsifier.attach(trainer.optimizer)
    return trainer, callback


def num_zeros(model):
    weights = [model.conv.weight, model.fc.weight]
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights)


def test_pruned_weights_do_not_count_in_the_norm_of_several_passes():
    trainer, callback = start(max_gradient_norm=1e-3)
    reports, gradients = [], []
    trainer.report = reports.append
    reference = Net()
    callback.sparsifier.before_step(0, 8)
    reference.load_state_dict(trainer.model.state_dict())
    first, second = batches(2)
    loss = sum(reference(batch.images).square().sum() / 2 for batch in (first, second))
    loss.backward()
    for name, parameter in reference.named_parameters():
        keep = callback.sparsifier.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        gradients.append(parameter.grad[keep].flatten())
    trainer.train(Level(0, 1), [first, second])
    assert reports[0].gradient_norm == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)


def test_the_average_of_a_sparse_model_is_as_sparse():
    trainer, callback = start(ema=EmaConfig(decay=0.9, ramp="linear", ramp_steps=5))
    average = trainer.evaluated_model
    num_weights = trainer.model.conv.weight.numel() + trainer.model.fc.weight.numel()
    for level, target in enumerate(CONFIG.schedule.levels):
        trainer.train(Level(level * 4, level * 4 + 4), batches(8))
        callback.before_evaluate(average)
        assert num_zeros(average) == num_zeros(trainer.model) == round(target * num_weights)
        for name, mask in callback.sparsifier.masks.items():
            assert (average.get_parameter(name)[~mask] == 0).all()
        assert not torch.equal(average.conv.weight, trainer.model.conv.weight)
        assert callback.sparsifier.measure(average).measured_sparsity == pytest.approx(target)


def test_the_average_is_measured_apart():
    trainer, callback = start(ema=EmaConfig())
    callback.sparsifier.prune_(0)
    assert callback.sparsifier.measure().measured_sparsity == pytest.approx(0.25)
    assert callback.sparsifier.measure(trainer.evaluated_model).measured_sparsity == 0.0
