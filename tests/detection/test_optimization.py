import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparsedet.detection.optimization import (
    LR_SCHEDULES,
    OPTIMIZERS,
    SGD,
    AdamW,
    Constant,
    Cosine,
    MultiStep,
    TrainingConfig,
)


@pytest.mark.parametrize(
    ("schedule", "position", "length", "factor"),
    [
        (Constant(warmup=0.0), 0, 10, 1.0),
        (Constant(warmup=0.5, warmup_start=0.2), 0, 10, 0.2),
        (Constant(warmup=0.5, warmup_start=0.2), 4, 10, 0.84),  # 0.2 + 0.8 * 4 / 5
        (Constant(warmup=0.5, warmup_start=0.2), 5, 10, 1.0),
        (Cosine(warmup=0.0), 0, 8, 1.0),
        (Cosine(warmup=0.0), 4, 8, 0.5),
        (Cosine(warmup=0.0, final=0.2), 4, 8, 0.6),
        (Cosine(warmup=0.2), 2, 10, 1.0),  # the decay starts after the two steps of warm-up
        (Cosine(warmup=0.2), 9, 10, (1 + math.cos(math.pi * 7 / 8)) / 2),
        (MultiStep(warmup=0.0), 6, 10, 1.0),
        (MultiStep(warmup=0.0), 7, 10, 0.1),
        (MultiStep(warmup=0.0, gamma=0.5), 9, 10, 0.25),
        (Cosine(), 0, 1, 1.0),  # a level of one step has no warm-up
    ],
)
def test_factors_worked_out_by_hand(schedule, position, length, factor):
    assert schedule.factor(position, length) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("schedule", [cls() for cls in LR_SCHEDULES.values()])
def test_factors_stay_between_zero_and_one(schedule):
    for length in (1, 2, 7, 100):
        assert all(0 < schedule.factor(position, length) <= 1 for position in range(length))


def test_cosine_equals_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for position in range(20):
        assert Cosine(warmup=0.0).factor(position, 20) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


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
    for wrong, words in (({}, "neither"), ({"steps": 1, "epochs": 1}, "both")):
        with pytest.raises(ValidationError, match=f"expected either 'steps' or 'epochs', got {words}"):
            TrainingConfig(**wrong)
