"""Which layers give the outputs of a model, on nets whose answer is plain to see."""

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError, TargetMatchError
from sparsedet.sparsity import OneShot, Sparsifier, SparsityConfig, Targets
from sparsedet.sparsity.predictions import find_predictions


class Net(nn.Module):
    """Layers a (3 -> 4 channels), b, c (4 -> 4), joined by a function of their outputs."""

    def __init__(self, join):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)
        self.join = join

    def forward(self, images):
        return self.join(self, images)


IMAGES = (torch.ones(2, 3, 8, 8),)


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda net, x: net.c(net.b(net.a(x))), "c"),
        (lambda net, x: (net.b(net.a(x)), net.c(net.a(x))), "b c"),
        (lambda net, x: net.b(net.a(x)), "b"),  # c is not called
        (lambda net, x: net.c(net.a(x) + net.b(net.a(x))), "c"),  # residual
        (lambda net, x: net.c(net.a(x) * net.b(net.a(x)).mean((2, 3), keepdim=True).sigmoid()), "c"),  # gate
        (lambda net, x: (lambda y: (y, net.c(y.detach())))(net.b(net.a(x))), "b c"),  # as region proposals
        (lambda net, x: [net.c(y) for y in (net.b(net.a(x)), net.a(x))], "c"),  # called twice
        (lambda net, x: {"low": net.c(net.a(x)), "high": net.c(net.b(net.a(x).relu_())).relu_()}, "c"),
        (lambda net, x: net.c(net.b(net.c(net.a(x)))), ""),  # c reads b, b reads c
        (lambda net, x: net.c(net.b(net.a(x))[:, [0, 0, 1, 1]].mul_(2).flip(1)), "c"),
        (lambda net, x: net.c(torch.cat([net.a(x)[:, :2], net.b(net.a(x))[:, 2:]], 1)), "c"),
    ],
)
def test_hand_worked(join, expected):
    net = Net(join)
    assert {name.removesuffix(".weight") for name in find_predictions(net, IMAGES)} == set(expected.split())
    net.requires_grad_(False)  # frozen layers keep no gradient of their own
    assert {name.removesuffix(".weight") for name in find_predictions(net, IMAGES)} == set(expected.split())


class Pooled(torch.autograd.Function):
    """Reads boxes without passing a gradient to them, as RoIAlign does."""

    @staticmethod
    def forward(ctx, features, boxes):
        return features * boxes.mean()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_an_edge_of_the_graph_without_a_gradient_is_no_reading():
    net = Net(lambda net, x: net.c(Pooled.apply(net.a(x), net.b(net.a(x)))))
    assert find_predictions(net, IMAGES) == {"b.weight", "c.weight"}


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("not implemented")


def test_an_operation_without_a_derivative_passes_on_what_it_reads():
    net = Net(lambda net, x: net.c(NoDerivative.apply(net.b(net.a(x)))))
    assert find_predictions(net, IMAGES) == {"c.weight"}


def test_attention_reads_and_is_read():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 4)
            self.first = nn.MultiheadAttention(4, 2, batch_first=True)
            self.second = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, tokens):
            tokens = self.embed(tokens)
            return self.second(*[self.first(tokens, tokens, tokens)[0]] * 3)[0]

    assert find_predictions(Last(), (torch.ones(1, 3, 4),)) == {"second.out_proj.weight"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch.compile itself
def test_hooks_are_called_in_compiled_parts():
    part = torch.compile(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), backend="eager")
    net = nn.Sequential(nn.Conv2d(3, 4, 1), part).eval()
    net(*IMAGES)  # compiled now, with the hooks of now: none
    assert find_predictions(net, IMAGES) == {"1.1.weight"}


def test_passes_without_gradients_are_refused():
    net = Net(torch.no_grad()(lambda net, x: net.c(net.b(net.a(x)))))
    message = (
        r"preset:prediction: expected a forward pass that keeps gradients, got 'a.weight' and 2 more calls without"
    )
    with pytest.raises(TargetMatchError, match=message):
        find_predictions(net, IMAGES)
    with torch.no_grad():  # of the caller it does not matter
        assert find_predictions(Net(lambda net, x: net.b(net.a(x))), IMAGES) == {"b.weight"}


def test_nothing_of_the_model_changes():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    assert find_predictions(net, IMAGES) == {"3.weight"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(module.training for module in net.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_wrong_inputs_are_refused_and_hooks_removed():
    net = Net(lambda net, x: net.b(net.a(x)))
    with pytest.raises(ConfigError, match="example_inputs: expected inputs that the model's forward accepts"):
        find_predictions(net, (torch.ones(1, 5, 8, 8),))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_sparsifier_finds_them(detector):
    targets = Targets(exclude=("preset:prediction", "preset:stem"))
    config = SparsityConfig(targets=targets, schedule=OneShot(sparsity=0.5), input_shape=(1, 3, 16, 16))
    left_out = {row.name: row.reason for row in Sparsifier(detector, config).selection if not row.chosen}
    assert left_out == {
        "backbone.conv1.weight": "exclude 'preset:stem'",
        "backbone.frozen.weight": "frozen (requires_grad is False)",
        "cls_pred.weight": "exclude 'preset:prediction'",
        "fc.weight": "exclude 'preset:prediction'",
    }
    config = SparsityConfig(targets=targets, schedule=OneShot(sparsity=0.5))
    message = "sparsity.input_shape: expected the shape of an input, which 'preset:prediction' needs, got null"
    with pytest.raises(ConfigError, match=message):
        Sparsifier(detector, config)


def test_the_sparsifier_runs_what_it_is_told_to(detector):
    targets = Targets(include=("preset:prediction",))
    config = SparsityConfig(targets=targets, schedule=OneShot(sparsity=0.5), scope="chosen")
    images = (torch.zeros(1, 3, 16, 16),)
    sparsifier = Sparsifier(detector, config, images, run=lambda images: detector.down(detector.backbone(images)))
    assert [row.name for row in sparsifier.selection if row.chosen] == ["down.weight"]
