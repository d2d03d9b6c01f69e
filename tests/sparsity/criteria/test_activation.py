"""Activation-aware criterion."""

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import NM, Activation, Calibration, LevelWise, OneShot, Sparsifier, SparsityConfig, Uniform
from sparsedet.sparsity.weights import find_weights


def call(model, batch):
    return model(batch)


def scores_of(model, batches, run=call):
    weights = find_weights(model)
    statistics = Activation().statistics(model, weights, Calibration(batches, run))
    return {weight.name: Activation().scores(weight.tensor, weight.name, statistics[weight.name]) for weight in weights}


def errors_without_each_weight(model, weight, batches, run=call):
    """Root of the squared error of the model's outputs when one entry of `weight` alone is zero."""
    outputs = [run(model, batch) for batch in batches]
    errors = torch.zeros(weight.shape)
    flat, found = weight.data.view(-1), errors.view(-1)
    for index in range(flat.numel()):
        value = flat[index].item()
        flat[index] = 0
        found[index] = sum(
            float((run(model, batch) - output).double().square().sum())
            for batch, output in zip(batches, outputs, strict=True)
        )
        flat[index] = value
    return errors.sqrt()


LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=2, groups=2), (2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="reflect"), (2, 4, 5, 6)),
    "valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 2, 5, 6)),
    "even": (lambda: nn.Conv2d(2, 3, 4, padding="same", padding_mode="circular"), (2, 2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 1, 2)), (1, 2, 3, 4, 5)),
    "unbatched": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), (2, 4, 3, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_scores_are_the_error_without_the_weight(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make()
    batches = [torch.randn(shape) for _ in range(2)]
    with torch.no_grad():
        expected = errors_without_each_weight(layer, layer.weight, batches)
    torch.testing.assert_close(scores_of(layer, batches)["weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}])
def test_attention(sizes):
    """Each projection against a linear layer that does the same."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, batch_first=True, **sizes).eval()
    query, key, value = (
        torch.randn(2, 6, 4),
        torch.randn(2, 3, sizes.get("kdim", 4)),
        torch.randn(2, 3, sizes.get("vdim", 4)),
    )
    found = scores_of(model, [(query, key, value)], lambda model, batch: model(*batch))
    weights = dict(model.named_parameters())
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if not sizes:
        parts = zip(names, weights["in_proj_weight"].chunk(3), found["in_proj_weight"].chunk(3), strict=True)
        weights, found = dict(weights), dict(found)
        for name, weight, scores in parts:
            weights[name], found[name] = weight, scores
    for name, inputs in zip(names, (query, key, value), strict=True):
        torch.testing.assert_close(found[name], weights[name].abs() * inputs.flatten(0, 1).norm(dim=0))
    with torch.no_grad():
        expected = errors_without_each_weight(
            model, model.out_proj.weight, [0], lambda model, _: model(query, key, value)[0]
        )
    torch.testing.assert_close(found["out_proj.weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("lengths", [None, (5, 3)])
def test_layers_inside_an_encoder_that_torch_would_fuse_are_seen(lengths):
    """In eval mode without gradients torch runs an encoder layer as one operation, padded ones as nested tensors."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0), 2)
    inputs = torch.randn(2, 5, 4)
    mask = None if lengths is None else torch.arange(5) >= torch.tensor(lengths)[:, None]
    found = scores_of(model, [inputs], lambda model, batch: model(batch, src_key_padding_mask=mask))
    assert len(found) == 8
    rows = inputs.double()
    model.double().train()  # nothing is fused here
    for index, layer in enumerate(model.layers):
        read = {"self_attn.in_proj_weight": rows}
        attended = layer.self_attn(rows, rows, rows, key_padding_mask=mask)[0]
        normed = layer.norm1(rows + attended)
        read["self_attn.out_proj.weight"] = torch.linalg.solve(
            layer.self_attn.out_proj.weight, (attended - layer.self_attn.out_proj.bias).mT
        ).mT
        read["linear1.weight"] = normed
        read["linear2.weight"] = layer.linear1(normed).relu()
        rows = layer.norm2(normed + layer.linear2(read["linear2.weight"]))
        for name, features in read.items():
            kept = features if mask is None else features[~mask]
            weight = layer.get_parameter(name).detach().abs()
            expected = weight * kept.detach().reshape(-1, features.shape[-1]).norm(dim=0)
            torch.testing.assert_close(found[f"layers.{index}.{name}"].double(), expected, rtol=1e-4, atol=1e-5)


def test_shared_layers_count_every_call():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    inputs = torch.randn(4, 3)
    rows = torch.cat([inputs, layer(inputs).relu()]).detach()
    torch.testing.assert_close(scores_of(model, [inputs])["0.weight"], layer.weight.detach().abs() * rows.norm(dim=0))


@pytest.mark.parametrize("first", ["whole", "halves", "thirds"])
def test_layers_in_other_groups_may_share_a_weight(first):
    torch.manual_seed(0)
    layers = {
        "whole": nn.Conv2d(2, 12, 2),
        "halves": nn.Conv2d(4, 12, 2, groups=2),
        "thirds": nn.Conv2d(6, 12, 2, groups=3),
    }
    model = nn.ModuleDict({first: layers.pop(first), **layers})
    for layer in layers.values():
        layer.weight = model[first].weight

    def outputs(model, batch):
        return torch.cat([layer(batch[:, : layer.in_channels]).flatten() for layer in model.values()])

    batches = [torch.randn(2, 6, 4, 4) for _ in range(2)]
    with torch.no_grad():
        expected = errors_without_each_weight(model, model[first].weight, batches, outputs)
    found = scores_of(model, batches, outputs)[f"{first}.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_channel_that_carries_little_goes():
    model = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False))
    model[0].weight.data.fill_(1)
    images = torch.ones(1, 4, 5, 5) * torch.tensor([4.0, 1.0, 2.0, 3.0])[:, None, None]
    config = SparsityConfig(schedule=OneShot(), pattern=NM(eligibility="divisible"), criterion=Activation())
    Sparsifier(model, config, calibration=Calibration([images], call)).prune_(0)
    assert torch.equal(model[0].weight.flatten(1), torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(8, 4))


def test_statistics_are_fresh_at_each_level_and_hooks_are_gone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).train()
    model.append(nn.Dropout(0.5))
    calls = []
    calibration = Calibration([torch.randn(5, 4)], lambda model, batch: calls.append(model.training) or model(batch))
    config = SparsityConfig(schedule=LevelWise(levels=(0.25, 0.5)), criterion=Activation(), allocation=Uniform())
    sparsifier = Sparsifier(model, config, calibration=calibration)
    assert calls == []
    sparsifier.prune_(0)
    assert calls == [False]
    model[0].weight.data.mul_(2)
    expected = scores_of(model, [calibration.batches[0]])["2.weight"]
    expected[~sparsifier.masks["2.weight"]] = -1
    sparsifier.prune_(1)
    kept = expected.flatten().topk(16).indices
    assert set(kept.tolist()) == set(sparsifier.masks["2.weight"].flatten().nonzero().flatten().tolist())
    assert calls == [False, False]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("batches", "run", "message"),
    [
        ([], call, "calibration.batches: expected at least one batch, got none"),
        ([torch.ones(2, 3)], lambda model, batch: model[0](batch), r"none that calls those of \['1.weight'\]"),
        ([torch.ones(2, 4)], call, "calibration.run: expected a function that serves every batch, got RuntimeError: "),
        ([torch.full((2, 3), torch.nan)], call, "expected finite inputs of every layer, got inf or NaN at '0.weight'"),
    ],
)
def test_calibration_that_cannot_be_used_is_refused(batches, run, message):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Activation())
    with pytest.raises(ConfigError, match=message):
        Sparsifier(model, config, calibration=Calibration(batches, run)).prune_(0)


def test_a_layer_that_is_called_with_something_else_than_a_tensor_is_refused():
    class Wrapped(nn.Linear):
        def forward(self, values):
            return super().forward(values["x"])

    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Activation())
    calibration = Calibration([torch.ones(2, 4)], lambda model, batch: model({"x": batch}))
    with pytest.raises(ConfigError, match="called with a tensor, got dict for a Wrapped"):
        Sparsifier(Wrapped(4, 4), config, calibration=calibration).prune_(0)


def test_without_calibration_the_criterion_is_refused():
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Activation())
    with pytest.raises(ConfigError, match="calibration: expected data, which the criterion 'activation' looks at"):
        Sparsifier(nn.Linear(3, 3), config)
