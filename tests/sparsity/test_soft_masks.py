"""Soft masks (`keep_pruned_values`) against the plain definition: a dense weight behind a mask in every forward."""

import copy
import math

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Cubic, LevelWise, OneShot, Sparsifier, SparsityConfig, Uniform

STEPS = 8


def soft(interval=1, schedule=None):
    return SparsityConfig(
        schedule=schedule or OneShot(sparsity=0.6),
        allocation=Uniform(),
        mask_update="every_k_steps",
        update_interval=interval,
        keep_pruned_values=True,
    )


def layer():
    torch.manual_seed(0)
    return nn.Linear(20, 10)


def data(step):
    return torch.randn(16, 20, generator=torch.Generator().manual_seed(step))


def loss_of(output):
    return (output - torch.linspace(-1, 1, 10)).square().sum()


def dense_of(model, sparsifier):
    """The dense weight: pruned values and kept ones together."""
    return model.weight.detach() + sparsifier.state_dict()["pruned_values"]["weight"]


def smallest_pruned(weight, count):
    keep = torch.ones(weight.numel(), dtype=torch.bool)
    keep[weight.detach().abs().flatten().argsort(stable=True)[:count]] = False
    return keep.view(weight.shape)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=0.5),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.1),
}


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_a_dense_weight_behind_a_mask(name, interval):
    model, reference = layer(), layer()
    optimizer, reference_optimizer = (OPTIMIZERS[name](net.parameters()) for net in (model, reference))
    sparsifier = Sparsifier(model, soft(interval))
    sparsifier.attach(optimizer)
    mask = torch.ones(10, 20, dtype=torch.bool)
    came_back = 0
    for step in range(STEPS):
        assert sparsifier.before_step(step, STEPS) == (step % interval == 0)
        if step % interval == 0:
            new = smallest_pruned(reference.weight, 120)
            changed = new != mask
            came_back += int((new & ~mask).sum())
            for value in reference_optimizer.state[reference.weight].values():  # ours clears it where a mask changes
                if torch.is_tensor(value) and value.shape == changed.shape:
                    value[changed] = 0
            mask = new
        assert torch.equal(sparsifier.masks["weight"], mask)
        for net, weight, steps in (
            (model, model.weight, optimizer),
            (reference, reference.weight * mask, reference_optimizer),
        ):
            steps.zero_grad()
            loss_of(nn.functional.linear(data(step), weight, net.bias)).backward()
            steps.step()
        torch.testing.assert_close(model.weight, reference.weight * mask, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(dense_of(model, sparsifier), reference.weight.detach(), rtol=1e-5, atol=1e-7)
        assert not model.weight[~mask].view(torch.int32).any()
    assert came_back > 0


def test_weight_decay_alone_moves_pruned_values():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    sparsifier = Sparsifier(model, soft(100))
    sparsifier.attach(optimizer)
    sparsifier.before_step(0, STEPS)
    before = dense_of(model, sparsifier)
    optimizer.zero_grad()
    loss_of(model(data(0))).backward()
    pruned = ~sparsifier.masks["weight"]
    assert not model.weight.grad[pruned].any()
    optimizer.step()
    torch.testing.assert_close(dense_of(model, sparsifier)[pruned], before[pruned] * (1 - 0.1 * 0.5))


def test_a_weight_that_comes_back_has_its_own_value():
    model = layer()
    sparsifier = Sparsifier(model, soft())
    sparsifier.before_step(0, STEPS)
    before = dense_of(model, sparsifier)
    assert torch.equal(before, layer().weight)
    with torch.no_grad():
        model.weight.mul_(1e-6)  # what is kept is now the smallest
    sparsifier.before_step(1, STEPS)
    assert int((model.weight == 0).sum()) == 120
    assert torch.equal(model.weight, before * sparsifier.masks["weight"])  # none of what was kept, all as it was


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (Cubic(sparsity=0.8, last=1.0), [round(200 * 0.8 * (1 - (1 - j / 7) ** 3)) for j in range(8)]),
        (LevelWise(levels=(0.3, 0.6)), [60] * 4 + [120] * 4),
    ],
)
def test_with_schedules_of_several_sparsities(schedule, counts):
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    sparsifier = Sparsifier(model, soft(1, schedule))
    sparsifier.attach(optimizer)
    for step in range(STEPS):
        sparsifier.before_step(step, STEPS)
        assert int((model.weight == 0).sum()) == counts[step]
        dense = dense_of(model, sparsifier)
        assert torch.equal(sparsifier.masks["weight"], smallest_pruned(dense, counts[step]))
        optimizer.zero_grad()
        loss_of(model(data(step))).backward()
        optimizer.step()


def test_masks_made_per_level_are_those_of_the_dense_weight():
    model = layer()
    sparsifier = Sparsifier(
        model, SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6)), allocation=Uniform(), keep_pruned_values=True)
    )
    sparsifier.before_step(0, 2)
    with torch.no_grad():
        model.weight.mul_(1e-6)
    sparsifier.before_step(1, 2)
    assert torch.equal(sparsifier.masks["weight"], smallest_pruned(dense_of(model, sparsifier), 120))
    assert (model.weight.abs() > 1e-3).any()  # from the first level


def test_nothing_changes_by_a_look_at_later_levels():
    model = layer()
    sparsifier = Sparsifier(model, soft(1, LevelWise(levels=(0.3, 0.6))))
    sparsifier.prune_(0)
    before = copy.deepcopy((model.state_dict(), sparsifier.state_dict()["pruned_values"]))
    assert sparsifier.allocate_levels() == [{"weight": 0.3}, {"weight": 0.6}]
    assert torch.equal(model.weight, before[0]["weight"])
    assert torch.equal(sparsifier.state_dict()["pruned_values"]["weight"], before[1]["weight"])


def test_a_gradient_scaler_and_a_skipped_step():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sparsifier = Sparsifier(model, soft())
    sparsifier.attach(optimizer)
    for step, factor in enumerate((1.0, math.inf, 1.0)):
        sparsifier.before_step(step, STEPS)
        before = dense_of(model, sparsifier)
        optimizer.zero_grad()
        scaler.scale(loss_of(model(data(step))) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(dense_of(model, sparsifier), before) == math.isinf(factor)
        assert int((model.weight == 0).sum()) == 120


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_may_change_its_dtype(dtype):
    model = layer()
    sparsifier = Sparsifier(model, soft())
    sparsifier.before_step(0, STEPS)
    dense = dense_of(model, sparsifier)
    model.to(dtype)
    with torch.no_grad():
        model.weight.mul_(1e-6)
    sparsifier.before_step(1, STEPS)
    came_back = model.weight.detach().float()
    came_back = came_back[came_back.abs() > 1e-3]
    assert came_back.numel() > 0
    assert torch.isin(came_back, dense.to(dtype).float()).all()


@pytest.mark.parametrize("way", ["positional", "keyword"])
def test_an_optimizer_that_calls_back_is_refused(way):
    model = layer()
    optimizer = torch.optim.LBFGS(model.parameters())
    sparsifier = Sparsifier(model, soft())
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)

    def closure():
        raise AssertionError("the weights would be dense here")

    with pytest.raises(ConfigError, match="keep_pruned_values: expected an optimizer that steps without a closure"):
        optimizer.step(closure) if way == "positional" else optimizer.step(closure=closure)
    assert int((model.weight == 0).sum()) == 120


def test_two_optimizers_of_one_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10))
    sparsifier = Sparsifier(model, soft())
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01, weight_decay=0.5) for part in model]
    for optimizer in optimizers:
        sparsifier.attach(optimizer)
    for step in range(3):
        sparsifier.before_step(step, 3)
        loss_of(model(data(step))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.measure().measured_sparsity == pytest.approx(0.6)
