import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.detection.lr_schedules import Constant
from sparsedet.detection.optimization import OPTIMIZERS, SGD, AdamW, TrainingConfig


def test_optimizers_are_torchs_with_the_given_values():
    assert set(OPTIMIZERS) == {"adamw", "sgd"}
    parameters = [nn.Parameter(torch.zeros(1))]
    adamw = AdamW(lr=0.5, weight_decay=0.1, betas=(0.8, 0.9)).build(parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [adamw.defaults[key] for key in ("lr", "weight_decay", "betas")] == [0.5, 0.1, (0.8, 0.9)]
    sgd = SGD(lr=0.5, momentum=0.3, weight_decay=0.1, nesterov=True).build(parameters)
    assert [sgd.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov")] == [0.5, 0.3, 0.1, True]


def test_length_in_steps_or_epochs():
    assert TrainingConfig(steps=7).total_steps(100) == 7
    assert TrainingConfig(epochs=1.5, batch_size=16).total_steps(100) == 10  # 7 batches in an epoch
    assert TrainingConfig(epochs=2.3, batch_size=1).total_steps(100) == 230  # though 2.3 * 100 < 230 in floats
    for wrong, words in (({}, "neither"), ({"steps": 1, "epochs": 1}, "both")):
        with pytest.raises(ValidationError, match=f"expected either 'steps' or 'epochs', got {words}"):
            TrainingConfig(**wrong)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "forward_batch_size", "steps_per_epoch"),
    [
        (117266, 32, 2, 3665),  # ceil(117266 / 16) = 7330 images on each of 16 devices, in batches of two
        (117266, 128, 8, 917),
        (117266, 16, None, 7330),
        (33, 32, 2, 2),
        (32, 32, 2, 1),
        (1, 32, 2, 1),
    ],
)
def test_steps_of_an_epoch_are_those_of_as_many_devices(num_images, batch_size, forward_batch_size, steps_per_epoch):
    config = TrainingConfig(steps=1, batch_size=batch_size, forward_batch_size=forward_batch_size)
    assert config.steps_per_epoch(num_images) == steps_per_epoch
    images_per_device = -(-num_images // config.passes_per_step)
    assert steps_per_epoch == -(-images_per_device // config.images_per_pass)


def test_the_rate_is_scaled_from_the_batch_it_is_meant_for():
    def peak(**fields):
        return TrainingConfig(steps=1, lr_schedule=Constant(warmup=0.0), **fields).lr(0, 1, 1)

    assert peak(optimizer=SGD(lr=0.01)) == 0.01
    assert peak(optimizer=SGD(lr=6.25e-4), batch_size=32, lr_batch_size=1) == pytest.approx(0.02)
    assert peak(optimizer=SGD(lr=0.01), batch_size=4, forward_batch_size=2, lr_batch_size=16) == pytest.approx(0.0025)


@pytest.mark.parametrize(
    ("fields", "batch", "passes"),
    [
        ({"batch_size": 32}, "32", 1),
        ({"batch_size": 32, "forward_batch_size": 32}, "32", 1),
        ({"batch_size": 32, "forward_batch_size": 2}, "32 = 16 x 2", 16),
    ],
)
def test_passes_of_a_step(fields, batch, passes):
    config = TrainingConfig(steps=1, **fields)
    assert (config.batch_text, config.passes_per_step) == (batch, passes)


@pytest.mark.parametrize(
    ("forward_batch_size", "num_processes", "images", "passes"),
    [(None, 1, 32, 1), (2, 1, 2, 16), (2, 4, 2, 16), (2, 16, 2, 16), (None, 4, 8, 4), (2, 32, 1, 32), (8, 8, 4, 8)],
)
def test_processes_share_passes_or_else_images(forward_batch_size, num_processes, images, passes):
    config = TrainingConfig(steps=1, batch_size=32, forward_batch_size=forward_batch_size)
    assert config.shared(num_processes) == (images, passes)
    assert images * passes == 32
    assert passes % num_processes == 0


def test_a_batch_that_processes_cannot_share_evenly_is_refused():
    with pytest.raises(
        ConfigError, match="3 processes can share evenly, got 32 images, whose passes do not divide by 3"
    ):
        TrainingConfig(steps=1, batch_size=32).shared(3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 32, "forward_batch_size": 5}, "forward_batch_size: expected a divisor of batch_size 32, got 5"),
        ({"batch_size": 2, "forward_batch_size": 4}, "forward_batch_size: expected a divisor of batch_size 2, got 4"),
        ({"lr_schedule": Constant(warmup_start="unscaled")}, "warmup_start: expected a factor where lr_batch_size"),
        ({"lr_batch_size": 0}, "greater than or equal to 1"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(steps=1, **fields)
