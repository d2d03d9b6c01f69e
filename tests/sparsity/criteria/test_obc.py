"""Optimal brain compression, against least squares worked out by numpy."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsedet.common.errors import ConfigError, UnsupportedShapeError
from sparsedet.sparsity import (
    NM,
    Activation,
    Block,
    Calibration,
    LevelWise,
    Obc,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Targets,
    Uniform,
    check_n_m,
)
from sparsedet.sparsity.criteria.obc import damped, fit

DAMPING = 1e-4


def call(model, batch):
    return model(batch)


def correlated(*shape):
    """Data whose features (dim 1) are mixtures of each other, as those of a network are."""
    mixture = torch.randn(shape[1], shape[1]) + torch.eye(shape[1])
    return torch.einsum("ni...,ij->nj...", torch.randn(shape), mixture)


def linear():
    torch.manual_seed(0)
    inputs = correlated(64, 16)
    return nn.Linear(16, 8), inputs, inputs[None]


def conv():
    """Groups, stride and padding; the features by torch's own unfold."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2)
    inputs = correlated(4, 8, 9, 9)
    patches = [functional.unfold(part, 3, stride=2, padding=1) for part in inputs.chunk(2, 1)]
    return layer, inputs, torch.stack([patch.mT.flatten(0, 1) for patch in patches])


LAYERS = {"linear": linear, "conv": conv}


def prune(layer, inputs, config=None, criterion=None):
    config = config or SparsityConfig(
        schedule=OneShot(sparsity=0.5), allocation=Uniform(), criterion=criterion or Obc(damping=DAMPING)
    )
    sparsifier = Sparsifier(layer, config, calibration=Calibration([inputs], call))
    sparsifier.prune_(0)
    return sparsifier


def refit(dense, keep, features):
    """The best weights with these zeros, by least squares with damping: rows of each group on their own."""
    dense, keep = (
        tensor.numpy().astype(np.float64).reshape(len(features), -1, features.shape[-1]) for tensor in (dense, keep)
    )
    best = np.zeros_like(dense)
    for group, rows in enumerate(features.double().numpy()):
        added = np.sqrt(DAMPING * np.square(rows).sum(0).mean()) * np.eye(rows.shape[1])
        stacked = np.concatenate([rows, added])
        for row, kept in enumerate(keep[group] != 0):
            best[group, row, kept] = np.linalg.lstsq(stacked[:, kept], stacked @ dense[group, row], rcond=None)[0]
    return best


def error(weights, dense, features):
    weights, dense = (
        np.asarray(tensor, np.float64).reshape(len(features), -1, features.shape[-1]) for tensor in (weights, dense)
    )
    return np.square((weights - dense) @ features.double().numpy().transpose(0, 2, 1)).sum()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_what_stays_is_the_least_squares_answer(kind, pattern):
    layer, inputs, features = LAYERS[kind]()
    dense, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    config = None
    if pattern == "2:4":
        config = SparsityConfig(schedule=OneShot(), pattern=NM(eligibility="divisible"), criterion=Obc(damping=DAMPING))
    sparsifier = prune(layer, inputs, config)
    keep = sparsifier.masks["weight"]
    pruned = layer.weight.detach()
    assert torch.equal(pruned != 0, keep)
    assert int((~keep).sum()) == dense.numel() // 2
    if pattern == "2:4":
        assert check_n_m(pruned, 2, 4) == 0
    assert torch.equal(layer.bias, bias)
    found, best = error(pruned, dense, features), error(refit(dense, keep, features), dense, features)
    assert best * 0.999 < found < best * 1.01
    # and the zeros are better ones than those of magnitude, with the weights refitted there as well as possible
    magnitude = (
        config.pattern.mask(dense.abs(), 0)
        if config
        else dense.abs() > dense.abs().flatten().kthvalue(keep.numel() // 2)[0]
    )
    refitted = error(refit(dense, magnitude, features), dense, features)
    assert int(magnitude.sum()) == int(keep.sum())
    assert found < refitted < 0.6 * error(dense * magnitude, dense, features)


def test_zeros_are_nearly_the_best_ones_there_are():
    """All 70 supports of 4 in 8, each refitted, for 24 rows."""
    torch.manual_seed(1)
    inputs = correlated(40, 8)
    layer = nn.Linear(8, 24)
    dense = layer.weight.detach().clone()
    prune(
        layer,
        inputs,
        SparsityConfig(
            schedule=OneShot(), pattern=NM(n=4, m=8, eligibility="divisible"), criterion=Obc(damping=DAMPING)
        ),
    )
    least = np.full(24, np.inf)
    for support in combinations(range(8), 4):
        keep = torch.zeros(24, 8)
        keep[:, support] = 1
        weights = refit(dense, keep, inputs[None])[0]
        least = np.minimum(least, np.square((weights - dense.double().numpy()) @ inputs.double().numpy().T).sum(1))
    found = np.square((layer.weight.detach() - dense).double().numpy() @ inputs.double().numpy().T).sum(1)
    magnitude = NM(n=4, m=8, eligibility="divisible").mask(dense.abs(), 96)
    plain = np.square((dense * ~magnitude).double().numpy() @ inputs.double().numpy().T).sum(1)
    assert (found > least * 0.99).all()
    assert found.sum() < 2 * least.sum()
    assert 2.5 * found.sum() < plain.sum()


def test_conjugate_gradients_reach_the_exact_answer():
    torch.manual_seed(0)
    rows = torch.randn(2, 30, 10, dtype=torch.float64)
    products = damped(rows.mT @ rows, DAMPING)
    target = torch.randn(2, 5, 10, dtype=torch.float64)
    keep = torch.rand(2, 5, 10) < 0.6
    found = fit(target, target, products, keep, 30)
    expected = torch.zeros_like(target)
    for group in range(2):
        for row in range(5):
            kept = keep[group, row]
            system = products[group][kept][:, kept]
            expected[group, row, kept] = torch.linalg.solve(system, products[group][kept] @ target[group, row])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_layer_reads_what_the_pruned_layers_before_it_give():
    """In the order of the calls, which is not that of registration."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(8, 4), nn.Linear(8, 8)

        def forward(self, inputs):
            return self.second(self.first(inputs).relu())

    torch.manual_seed(0)
    model, inputs = Net(), correlated(64, 8)
    alone = nn.Linear(8, 4)
    alone.load_state_dict(model.second.state_dict())
    prune(model, inputs)
    prune(alone, model.first(inputs).relu().detach())
    torch.testing.assert_close(model.second.weight, alone.weight)


def test_levels_keep_their_zeros_and_start_from_what_training_made():
    layer, inputs, features = linear()
    config = SparsityConfig(schedule=LevelWise(levels=(0.5, 0.6)), allocation=Uniform(), criterion=Obc(damping=DAMPING))
    sparsifier = prune(layer, inputs, config)
    gone = layer.weight == 0
    inputs[:, :6] = 0  # of what may go now, many entries are worth as little as what went
    layer.weight.data += torch.randn(8, 16) * ~gone
    trained = layer.weight.detach().clone()
    sparsifier.prune_(1)
    assert not layer.weight[gone].any()
    assert int((layer.weight == 0).sum()) == round(0.6 * 128)
    best = error(refit(trained, sparsifier.masks["weight"], features), trained, features)
    assert error(layer.weight.detach(), trained, features) < best * 1.01


def test_attention_and_blocks():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    dense = model.in_proj_weight.detach().clone()
    inputs = [correlated(10, 8, 4).mT.contiguous() for _ in range(3)]
    calibration = Calibration([inputs], lambda model, batch: model(*batch))
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.5),
        allocation=Uniform(),
        pattern=Block(shape=(2, 2)),
        criterion=Obc(damping=DAMPING),
    )
    sparsifier = Sparsifier(model, config, calibration=calibration)
    sparsifier.prune_(0)
    blocks = (model.in_proj_weight != 0).reshape(12, 2, 4, 2).sum((1, 3))
    assert set(blocks.unique().tolist()) == {0, 4}
    features = torch.stack([part.flatten(0, 1) for part in inputs])
    keep = sparsifier.masks["in_proj_weight"]
    best = error(refit(dense, keep, features), dense, features)
    assert error(model.in_proj_weight.detach(), dense, features) < best * 1.01


def test_features_that_are_always_zero_and_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 1)).bfloat16()
    model[0].bias.data.fill_(-100)  # the second convolution reads zeros only
    model[2].running_mean.zero_()
    inputs = torch.randn(2, 8, 5, 5).bfloat16()
    inputs[:, 3] = 0
    before = {
        key: value.clone() for key, value in model.state_dict().items() if not key.endswith("weight") or "2" in key
    }
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    sparsifier = prune(model, inputs, criterion=Obc())
    assert torch.equal(torch.rand(2), expected)
    assert sparsifier.measure().measured_sparsity == 0.5
    assert not model[0].weight[:, 3].any()
    assert all(weight.isfinite().all() for weight in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_it_cannot_serve_is_refused():
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Obc())
    with pytest.raises(ConfigError, match="calibration: expected data, which the criterion 'obc' looks at, got None"):
        Sparsifier(nn.Linear(4, 4), config)
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2))
    with pytest.raises(UnsupportedShapeError, match=r"transposed convolutions, such as '0\.weight', got 'obc'"):
        Sparsifier(model, config, calibration=Calibration([torch.ones(1, 4, 3, 3)], call))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sparsifier = Sparsifier(model, config, calibration=Calibration([torch.ones(1, 4)], lambda m, b: m[0](b)))
    with pytest.raises(ConfigError, match=r"got none that calls those of \['1\.weight'\]"):
        sparsifier.prune_(0)


def test_batches_that_the_model_does_not_take_are_refused():
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Obc())
    sparsifier = Sparsifier(nn.Linear(4, 4), config, calibration=Calibration([torch.ones(1, 5)], call))
    with pytest.raises(
        ConfigError, match=r"calibration\.run: expected a function that serves every batch, got RuntimeErr"
    ):
        sparsifier.prune_(0)


class Functions(nn.Module):
    """Hands two of its weights to functions, as torchvision's Swin does with qkv."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.proj, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, batch):
        batch = functional.linear(self.first(batch), self.qkv.weight, self.qkv.bias)
        return self.last(functional.linear(batch, self.proj.weight))


@pytest.mark.parametrize("criterion", [Obc(), Activation()])
def test_layers_that_only_functions_use_are_refused_all_at_once_before_anything_changes(criterion):
    model, data = Functions(), Calibration([torch.ones(1, 6)], call)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=criterion)
    with pytest.raises(ConfigError) as error:
        Sparsifier(model, config, calibration=data).prune_(0)
    assert "got none that calls those of ['qkv.weight', 'proj.weight']. Models such as torchvision's" in str(
        error.value
    )
    assert "add these to sparsity.targets.exclude, or use the criterion 'magnitude'" in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    left_out = config.model_copy(update={"targets": Targets(exclude=("qkv", "proj")), "scope": "chosen"})
    sparsifier = Sparsifier(model, left_out, calibration=data)
    sparsifier.prune_(0)
    assert sparsifier.measure().measured_sparsity_chosen == 0.5


def test_a_layer_that_only_a_later_batch_calls_is_served():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    batches = [(0, torch.ones(1, 4)), (1, torch.ones(1, 4))]
    data = Calibration(batches, lambda model, batch: model[batch[0]](batch[1]))
    Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Obc()), calibration=data).prune_(0)
    assert sum(int((layer.weight == 0).sum()) for layer in model) == 16


def test_layers_that_are_too_wide_are_refused_before_anything_is_allocated():
    model = nn.Sequential(nn.Linear(40000, 2), nn.Linear(2, 2), nn.Conv2d(8000, 2, 3))
    data = Calibration([torch.ones(1, 4)], call)
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Obc(), scope="chosen")
    message = r"fit into 4 GiB, .* got '0\.weight' \(6\.0 GiB\), '2\.weight' \(19\.3 GiB\)\. Add these to targets\.ex"
    with pytest.raises(UnsupportedShapeError, match=message):
        Sparsifier(model, config, calibration=data)
    Sparsifier(model, config.model_copy(update={"targets": Targets(include=("1",))}), calibration=data)
