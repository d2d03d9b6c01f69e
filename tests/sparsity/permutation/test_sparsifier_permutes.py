"""``pattern.permute`` of the sparsifier: before the first masks, and never when something would not follow."""

import copy

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import NM, OneShot, Sparsifier, SparsityConfig, check_n_m

CONFIG = SparsityConfig(schedule=OneShot(), pattern=NM(permute=True), input_shape=(2, 3, 4, 4))
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten(1))


def kept(model):
    return float(model[3].weight.detach().abs().sum())


def test_channels_are_permuted_before_the_masks_are_made():
    model, plain = small(), small()
    Sparsifier(plain, CONFIG.model_copy(update={"pattern": NM()})).prune_(0)
    sparsifier = Sparsifier(model, CONFIG)
    assert torch.equal(model[3].weight, small()[3].weight)
    sparsifier.prune_(0)
    assert kept(model) > 1.01 * kept(plain)
    assert check_n_m(model[3].weight, 2, 4) == 0
    assert sorted(model[0].bias.tolist()) == sorted(plain[0].bias.tolist())


def test_the_report_is_there_for_the_asking_and_only_once():
    model, original = small(), small()
    sparsifier = Sparsifier(model, CONFIG)
    report = sparsifier.permute_()
    assert [group.weights for group in report.groups] == [("3.weight",)]
    group = report.groups[0]
    gain = f"{group.kept_after / group.kept_before - 1:.2%}"
    assert report.summary.startswith(f"1 groups of channels permuted, which keep {gain} more; 1 weights left alone; ")
    assert report.summary.endswith(f"differ by at most {report.max_output_difference:.1e}, the largest is 0.572")
    torch.testing.assert_close(model.eval()(IMAGES), original.eval()(IMAGES))
    permuted = copy.deepcopy(model.state_dict())
    assert sparsifier.permute_() is None
    assert all(torch.equal(tensor, permuted[name]) for name, tensor in model.state_dict().items())


def test_only_chosen_weights_count_and_without_the_key_nothing_moves():
    model = small()
    assert Sparsifier(model, CONFIG.model_copy(update={"pattern": NM()})).permute_() is None
    model.append(nn.Linear(32, 16))
    sparsifier = Sparsifier(
        model, CONFIG.model_copy(update={"targets": CONFIG.targets.model_copy(update={"exclude": ("3",)})})
    )
    assert [group.weights for group in sparsifier.permute_().groups] == []


def test_an_optimizer_with_state_is_an_error_before_anything_moves():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGES).square().mean().backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    sparsifier = Sparsifier(model, CONFIG)
    sparsifier.attach(optimizer)
    with pytest.raises(ConfigError, match=r"pattern\.permute: expected an optimizer that has made no step .* got SGD"):
        sparsifier.before_step(0, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_from_the_first_step_keeps_the_masks():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier = Sparsifier(model, CONFIG)
    sparsifier.attach(optimizer)
    for step in range(3):
        sparsifier.before_step(step, 3)
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()
    assert check_n_m(model[3].weight, 2, 4) == 0
    assert kept(model) > 0


def test_masks_that_were_loaded_are_never_permuted_under():
    first = Sparsifier(small(), CONFIG)
    first.prune_(0)
    model = copy.deepcopy(first._model)
    going_on = Sparsifier(model, CONFIG)
    going_on.load_state_dict(first.state_dict())
    assert going_on.permute_() is None
    going_on.prune_(0)
    assert torch.equal(model[3].weight, first._model[3].weight)


def test_zeros_that_are_there_move_with_their_channels():
    model, plain = small(), small()
    Sparsifier(plain, CONFIG.model_copy(update={"pattern": NM()})).prune_(0)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        model[3].weight[0, 20:] = 0
    num_zeros = int((model[3].weight == 0).sum())
    Sparsifier(model, CONFIG.model_copy(update={"keep_zeros": True})).masks_from_zeros_()
    assert int((model[3].weight == 0).sum()) == num_zeros
    assert sorted(model[0].bias.tolist()) == sorted(plain[0].bias.tolist())


def test_example_inputs_are_needed():
    with pytest.raises(ConfigError, match=r"sparsity.input_shape: .* which pattern.permute needs, got null"):
        Sparsifier(small(), CONFIG.model_copy(update={"input_shape": None}))
