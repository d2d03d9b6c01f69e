"""MACs and stride groups, against hand-computed numbers and PyTorch's own counter."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
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


class Call(nn.Module):
    """An attention module called with fixed inputs, given by position or by keyword."""

    def __init__(self, attention, by_keyword=False):
        super().__init__()
        self.attention = attention
        self.by_keyword = by_keyword

    def forward(self, query, key, value):
        if self.by_keyword:
            return self.attention(query=query, key=key, value=value)
        return self.attention(query, key, value)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_macs_of_attention_projections_by_hand(by_keyword):
    query, key, value = torch.zeros(2, 7, 8), torch.zeros(2, 5, 6), torch.zeros(2, 5, 4)
    model = Call(nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True), by_keyword)
    assert profile_model(model, (query, key, value)).num_macs == {
        "attention.q_proj_weight": 7 * 8 * 8,
        "attention.k_proj_weight": 5 * 6 * 8,
        "attention.v_proj_weight": 5 * 4 * 8,
        "attention.out_proj.weight": 7 * 8 * 8,
    }
    model = Call(nn.MultiheadAttention(8, 2), by_keyword)  # batch in dimension 1
    query, key = torch.zeros(7, 2, 8), torch.zeros(5, 2, 8)
    assert profile_model(model, (query, key, key)).num_macs == {
        "attention.in_proj_weight": (7 + 5 + 5) * 8 * 8,
        "attention.out_proj.weight": 7 * 8 * 8,
    }


@pytest.mark.parametrize("batch_first", [False, True])
def test_macs_of_a_transformer_are_half_of_torch_s_flops(batch_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.zeros(2, 5, 16)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    flops = counter.get_flop_counts()["Global"]
    of_weights = sum(value for key, value in flops.items() if key in (torch.ops.aten.mm, torch.ops.aten.addmm))
    batch_size = 2 if batch_first else 5
    assert sum(profile_model(model, (tokens,)).num_macs.values()) * 2 * batch_size == of_weights


class Functional(nn.Module):
    """Uses the weights of its layers without calling them, one of them besides calling it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.fc = nn.Linear(2, 5)
        self.both = nn.Linear(5, 5)

    def forward(self, images):
        features = nn.functional.conv2d(images, self.conv.weight)
        features = nn.functional.conv_transpose2d(features, self.up.weight, stride=2)
        pooled = nn.functional.linear(features.mean((2, 3)), weight=self.fc.weight)
        return nn.functional.linear(self.both(pooled), self.both.weight)


def test_weights_used_without_their_layer_are_counted():
    profile = profile_model(Functional(), (torch.zeros(2, 3, 10, 10),))
    assert profile.num_macs == {
        "conv.weight": 8 * 8 * 4 * 3 * 9,
        "up.weight": 8 * 8 * 4 * 2 * 4,
        "fc.weight": 2 * 5,
        "both.weight": 2 * 5 * 5,
    }
    assert profile.input_sizes == {"conv.weight": 10, "up.weight": 8}


class Standardized(nn.Conv2d):
    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images, weight, self.bias)


def test_layers_that_compute_their_weight_are_counted():
    model = nn.Sequential(Standardized(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 2, 1)))
    profile = profile_model(model, (torch.zeros(2, 3, 10, 10),))
    assert profile.num_macs == {"0.weight": 8 * 8 * 4 * 3 * 9, "1.weight": 8 * 8 * 2 * 4}


@pytest.mark.parametrize("inner", [False, True])
def test_compiled_models_are_counted(inner):
    part = torch.compile(nn.Sequential(nn.Conv2d(3, 4, 1)), backend="eager")
    model = nn.Sequential(part, nn.Conv2d(4, 4, 1)) if inner else part
    images = torch.zeros(1, 3, 5, 5)
    with torch.no_grad():
        model.eval()(images)  # compiled now, with the hooks of now: none
    expected = {"0.0.weight": 25 * 12, "1.weight": 25 * 16} if inner else {"0.weight": 25 * 12}
    assert profile_model(model, (images,)).num_macs == expected


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


def test_subclasses_may_take_and_return_anything_and_hold_several_matrices():
    class Pair(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x * scale), self.bias

    class Wrapped(nn.Linear):
        def forward(self, values):
            return super().forward(values["x"])

    class Experts(nn.Linear):
        def forward(self, x):
            return torch.einsum("ebi,eoi->ebo", x, self.weight)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrapped, self.pair, self.experts = Wrapped(4, 4), Pair(4, 5), Experts(4, 5)
            self.experts.weight = nn.Parameter(torch.randn(2, 6, 5))

        def forward(self, x):
            x, _ = self.pair(x=self.wrapped({"x": x}), scale=2.0)
            return self.experts(x.reshape(2, -1, 5))

    profile = profile_model(Net(), (torch.zeros(1, 8, 4),))  # 8 rows, of which each expert gets 4
    assert profile.num_macs == {"wrapped.weight": 8 * 16, "pair.weight": 8 * 20, "experts.weight": 8 * 30}
    assert profile.stride_groups == dict.fromkeys(profile.num_macs, 0)


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
