"""Measured sparsity: counted zeros, totals and weighting by MACs."""

import math

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import measure, profile_model


@pytest.fixture
def model():
    """A convolution (72 weights, 8 x 8 outputs) with a quarter of zeros, a linear layer (512) with half."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model[0].weight.data.view(-1)[:18] = 0
    model[3].weight.data[0] = -0.0
    return model


def test_numbers_by_hand(model):
    profile = profile_model(model, (torch.zeros(1, 2, 8, 8),))
    found = measure(model, chosen={"3.weight"}, profile=profile, reasons={"0.weight": "exclude '0'"})
    assert found.measured_sparsity == (18 + 256) / (72 + 512)
    assert found.measured_sparsity_chosen == 0.5
    assert found.num_macs == 72 * 64 + 512
    assert found.macs_kept == pytest.approx((54 * 64 + 256) / (72 * 64 + 512))
    assert found.num_parameters == 72 + 4 + 8 + 512 + 2
    assert found.num_nonzero == found.num_parameters - 18 - 256
    conv, linear = found.layers
    assert (conv.name, conv.shape, conv.numel, conv.num_zeros, conv.sparsity) == (
        "0.weight",
        (4, 2, 3, 3),
        72,
        18,
        0.25,
    )
    assert (conv.macs, conv.macs_kept, conv.chosen, conv.reason) == (72 * 64, 0.75, False, "exclude '0'")
    assert (linear.num_zeros, linear.macs, linear.chosen, linear.reason) == (256, 512, True, None)


def test_without_profile_and_choice_nothing_is_made_up(model):
    found = measure(model)
    assert (found.macs_kept, found.num_macs, found.measured_sparsity_chosen) == (None, None, None)
    assert (found.layers[0].macs, found.layers[0].macs_kept, found.layers[0].chosen) == (None, None, None)


def test_shared_weights_count_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    found = measure(nn.Sequential(first, second))
    assert (len(found.layers), found.num_parameters) == (1, 16)


def test_nan_is_not_zero(model):
    model[0].weight.data.fill_(math.nan)
    assert measure(model).layers[0].num_zeros == 0


def test_parameters_without_values_are_refused():
    with pytest.raises(ConfigError, match=r"model: expected parameters with values, got '1.weight' on the meta device"):
        measure(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, device="meta")))


def test_the_profile_of_another_model_is_refused(model):
    with pytest.raises(
        ConfigError, match=r"expected the weights of the model that was pruned, got another one, by '0\.weight'"
    ):
        measure(nn.Linear(2, 2), profile=profile_model(model, (torch.zeros(1, 2, 8, 8),)))


def test_model_without_layers():
    found = measure(nn.BatchNorm2d(3))
    assert (found.measured_sparsity, found.layers, found.num_parameters) == (0.0, (), 6)
