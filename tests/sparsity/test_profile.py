"""MACs and stride groups, against hand-computed numbers and PyTorch's own counter."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import profile_model
from sparsedet.sparsity.profile import Profile


@pytest.mark.parametrize(
    ("layer", "shape", "num_macs"),
    [
        (nn.Linear(5, 3), (7, 5), 5 * 3),
        (nn.Linear(5, 3), (2, 11, 5), 11 * 5 * 3),  # tokens
        (nn.Linear(5, 3), (5,), 5 * 3),  # no batch dimension
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 6), 10 * 6 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2), (2, 3, 9, 9), 4 * 4 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 4), 4 * 4 * 8 * 9),  # depthwise
        (nn.Conv2d(3, 8, 1), (3, 4, 5), 4 * 5 * 8 * 3),
        (nn.Conv1d(2, 4, 3), (2, 2, 10), 8 * 4 * 2 * 3),
        (nn.Conv3d(2, 4, 2), (1, 2, 3, 3, 3), 8 * 4 * 2 * 8),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 5, 5), 5 * 5 * 6 * 4 * 4),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (1, 6, 5, 5), 5 * 5 * 6 * 2 * 9),
    ],
)
def test_macs_by_hand(layer, shape, num_macs):
    assert profile_model(nn.Sequential(layer), (torch.zeros(shape),)).num_macs == {"0.weight": num_macs}


def test_macs_are_half_of_torch_s_flops(detector):
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(images)
    assert sum(profile_model(detector, (images,)).num_macs.values()) * 2 * 2 == counter.get_total_flops()


def test_a_module_called_twice_counts_twice_and_has_its_finest_input(detector):
    profile = profile_model(detector, (torch.zeros(1, 3, 32, 64),))
    # called on 16 x 32 and on 8 x 16
    assert profile.num_macs["tower.weight"] == (16 * 32 + 8 * 16) * 32 * 32 * 9
    assert profile.input_sizes == {
        "backbone.conv1.weight": 64, "backbone.depthwise.weight": 32, "backbone.frozen.weight": 32,
        "down.weight": 32, "tower.weight": 32, "cls_pred.weight": 32,
    }  # fmt: skip
    assert profile.network_input_size == 64


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ({"a": 800, "b": 400, "c": 100, "d": 25}, [0, 1, 2, 3]),  # ranks of 0, 1, 3, 5 octaves
        ({"a": 800, "b": 750, "c": 420, "d": 390}, [0, 0, 1, 1]),  # rounded
        ({"a": 800, "b": 1600}, [1, 0]),  # finer than the network's input
        ({"a": 1}, [0]),
        ({}, []),
    ],
)
def test_stride_groups(sizes, groups):
    network = 800 if sizes != {"a": 1} else 1
    profile = Profile(dict.fromkeys([*sizes, "fc"], 0), sizes, network if sizes else None)
    assert list(profile.stride_groups.values()) == [*groups, max(groups, default=0)]  # fc in the coarsest


def test_shared_weights_are_counted_under_their_name():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert profile_model(nn.Sequential(first, second, first), (torch.zeros(1, 4),)).num_macs == {"0.weight": 48}


def test_a_layer_that_is_not_called_has_no_macs():
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module("unused", nn.Identity())
    model.unused.layer = nn.Linear(4, 4)
    assert profile_model(model, (torch.zeros(1, 4),)).num_macs == {"0.weight": 16, "unused.layer.weight": 0}


def test_inputs_may_be_given_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, features):
            return self.layer(input=features)

    assert profile_model(Keyword(), (torch.zeros(1, 4),)).num_macs == {"layer.weight": 8}


def test_nothing_of_the_model_changes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1))
    model[2].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    profile_model(model, (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),))
    assert [module.training for module in model] == [True, True, False, True]
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_everything_is_restored_after_a_failure():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).train()
    message = "example_inputs: expected inputs that the model's forward accepts, got RuntimeError: "
    with pytest.raises(
        ConfigError, match=re.escape(message) + ".*Correct sparsity.input_shape, or pass example_inputs"
    ):
        profile_model(model, (torch.zeros(1, 5, 8, 8),))
    assert model.training
    assert not model[0]._forward_hooks
