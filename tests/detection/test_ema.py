import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparsedet.detection.ema import EmaConfig, WeightAverage


class Norm(nn.Module):
    """A weight, and a norm whose running statistics and count are buffers."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.norm = nn.BatchNorm1d(2)

    def set(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
            self.norm.running_var.fill_(10 * value)
            self.norm.num_batches_tracked.fill_(int(100 * value))


@pytest.mark.parametrize(
    ("ramp", "decays"),
    [
        ("linear", [1 / 3, 2 / 4, 3 / 5, 0.65, 0.65]),  # (1 + t) / (3 + t), then the limit
        ("exponential", [0.65 * (1 - math.exp(-t / 3)) for t in range(5)]),
    ],
)
def test_decays_and_averages_worked_out_by_hand(ramp, decays):
    config = EmaConfig(decay=0.65, ramp=ramp, ramp_steps=3)
    assert [config.decay_at(update) for update in range(5)] == pytest.approx(decays)
    model = Norm(1.0)
    average = WeightAverage(model, config)
    weight, variance = 1.0, 1.0
    for update, (decay, value) in enumerate(zip(decays, (2.0, -1.0, 0.5, 4.0, 3.0), strict=True)):
        model.set(value)
        average.update(model)
        weight = decay * weight + (1 - decay) * value
        variance = decay * variance + (1 - decay) * 10 * value
        assert average.num_updates == update + 1
        assert average.model.weight.tolist() == pytest.approx([weight] * 2)
        assert average.model.norm.running_var.tolist() == pytest.approx([variance] * 2)
        assert average.model.norm.num_batches_tracked.item() == 100 * value
        assert model.weight.tolist() == [value] * 2


def test_names_are_those_of_the_model():
    model = Norm(1.0)
    assert list(WeightAverage(model, EmaConfig()).model.state_dict()) == list(model.state_dict())


def test_weights_that_are_zero_stay_exactly_zero():
    model = Norm(0.0)
    average = WeightAverage(model, EmaConfig(decay=0.9, ramp="linear", ramp_steps=7))
    for _ in range(5):
        average.update(model)
    assert not torch.signbit(average.model.weight).any()
    assert average.model.weight.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("fields", [{"decay": 1.0}, {"decay": -0.1}, {"ramp_steps": 0}, {"ramp": "exp"}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        EmaConfig(**fields)
