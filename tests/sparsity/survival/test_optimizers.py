"""Pruned weights stay exactly +0.0 under every optimizer, and their gradients count nowhere."""

import math
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import LevelWise, OneShot, Sparsifier, SparsityConfig, Targets, Uniform

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def loss_of(model, seed):
    images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (model(images) - 1).square().mean()


def gradients_of(model, optimizer):
    optimizer.zero_grad()
    loss = loss_of(model, 0)
    loss.backward()
    return loss


def is_plus_zero(weight):
    return weight.detach().view(torch.int32) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_plus_zero_after_every_step(name):
    model = tiny()
    optimizer = OPTIMIZERS[name](model.parameters())
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.0, 0.5, 0.9)), allocation=Uniform()))
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()

    for step in range(6):
        sparsifier.before_step(step, 6)
        optimizer.step(partial(gradients_of, model, optimizer))
        for parameter, mask in zip((model[0].weight, model[4].weight), sparsifier.masks.values(), strict=True):
            assert torch.equal(is_plus_zero(parameter)[~mask], torch.ones(int((~mask).sum()), dtype=torch.bool))
            assert parameter.isfinite().all()
    kept = sparsifier.masks["0.weight"]
    assert (model[0].weight[kept] != before[kept]).any()  # the others do train


@pytest.mark.parametrize("planted", [math.nan, -math.nan, math.inf, -0.0, 3.0])
def test_whatever_is_planted_is_gone_after_a_step(planted):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.5)))
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    loss_of(model, 0).backward()
    with torch.no_grad():
        for name, mask in sparsifier.masks.items():
            model.get_parameter(name)[~mask] = planted
            model.get_parameter(name).grad[~mask] = planted
    optimizer.step()
    for name, mask in sparsifier.masks.items():
        assert is_plus_zero(model.get_parameter(name))[~mask].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_and_a_gradient_scaler(dtype):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9))))
    sparsifier.attach(optimizer)
    for step in range(4):
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert all(is_plus_zero(model.get_parameter(name))[~mask].all() for name, mask in sparsifier.masks.items())
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.9, abs=1e-3)


def test_a_gradient_that_is_not_finite_at_a_pruned_entry_does_no_harm():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[0.1, 2.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier(layer, SparsityConfig(schedule=OneShot(sparsity=0.5)))
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    (layer.weight * torch.tensor([[math.nan, 3.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[0.0, 3.0]]
    assert not layer.weight.grad.signbit().any()


def test_clipping_does_not_count_pruned_entries():
    """Gradient (30, 3, 40, 4): its norm is 50.2 over all entries, 5 over the two that stay."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[0.1, 2.0, -0.2, 1.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    sparsifier = Sparsifier(layer, SparsityConfig(schedule=OneShot(sparsity=0.5)))
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    for _ in range(2):  # gradients of two passes add up
        (layer.weight * torch.tensor([[15.0, 1.5, 20.0, 2.0]])).sum().backward()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 2.5).item() == pytest.approx(5.0)
    assert layer.weight.grad.tolist() == [[0.0, pytest.approx(1.5, rel=1e-5), 0.0, pytest.approx(2.0, rel=1e-5)]]


def test_new_masks_clear_the_state_of_the_optimizer():
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.0, 0.8))))
    sparsifier.attach(optimizer)
    loss_of(model, 0).backward()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[model[0].weight].items()}
    sparsifier.prune_(1)
    mask = sparsifier.masks["0.weight"]
    after = optimizer.state[model[0].weight]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert before[key][~mask].any()
        assert is_plus_zero(after[key])[~mask].all()
        assert torch.equal(after[key][mask], before[key][mask])
    assert torch.equal(after["step"], before["step"])


def test_new_masks_let_lbfgs_begin_anew():
    model = tiny()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9))))
    sparsifier.attach(optimizer)
    num_dense = 0

    def closure():
        nonlocal num_dense
        masks = zip((model[0].weight, model[4].weight), sparsifier.masks.values(), strict=True)
        num_dense += sum(int(weight[~mask].count_nonzero()) for weight, mask in masks)
        return gradients_of(model, optimizer)

    for step in range(6):
        sparsifier.before_step(step, 6)
        optimizer.step(closure)
    assert num_dense == 0  # what it remembered of pruned entries would move them within a step
    (memory,) = optimizer.state.values()
    assert len(memory["old_dirs"]) > 1
    count = memory["n_iter"]
    sparsifier.attach(optimizer)  # nothing new is pruned: nothing is forgotten
    assert memory["n_iter"] == count


def test_the_state_inside_a_zero_redundancy_optimizer_is_cleared():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = tiny()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)
        sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.8)))
        sparsifier.attach(optimizer)
        loss_of(model, 0).backward()
        optimizer.step()
        sparsifier.prune_(0)
        moments = optimizer.optim.state[model[0].weight]
        assert is_plus_zero(moments["exp_avg"])[~sparsifier.masks["0.weight"]].all()
        assert moments["exp_avg"].any()
    finally:
        torch.distributed.destroy_process_group()


def test_the_wrapper_of_accelerate():
    model = tiny()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9))))
    sparsifier.attach(optimizer)
    for step in range(4):
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, step))
        optimizer.step()
        assert is_plus_zero(model[4].weight)[~sparsifier.masks["4.weight"]].all()
    assert is_plus_zero(optimizer.state[model[4].weight]["exp_avg"])[~sparsifier.masks["4.weight"]].all()


class Lookahead(torch.optim.Optimizer):
    """As many do it: a wrapper that shares what the optimizer inside it has."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups


@pytest.mark.parametrize("make", [lambda p: Lookahead(torch.optim.SGD(p, lr=0.1)), list])
def test_what_hides_the_steps_of_an_optimizer_is_refused(make):
    model = tiny()
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    with pytest.raises(ConfigError, match=r"expected an optimizer of torch, got (Lookahead|list)\. .* call apply_"):
        sparsifier.attach(make(model.parameters()))


def test_a_weight_that_is_thawed_later_has_no_gradient_where_it_is_pruned():
    model = tiny()
    model[0].weight.requires_grad_(False)
    config = SparsityConfig(targets=Targets(include_frozen=True), schedule=OneShot(sparsity=0.9))
    sparsifier = Sparsifier(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    sparsifier.before_step(0, 2)
    model[0].weight.requires_grad_(True)
    sparsifier.before_step(1, 2)
    loss_of(model, 0).backward()
    mask = sparsifier.masks["0.weight"]
    assert not model[0].weight.grad[~mask].any()
    assert model[0].weight.grad[mask].any()


def test_attach_is_idempotent_and_serves_a_new_optimizer():
    model = tiny()
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        sparsifier.attach(first)
    assert len(first._optimizer_step_post_hooks) == 1
    assert len(model[0].weight._post_accumulate_grad_hooks) == 1
    sparsifier.prune_(0)
    second = torch.optim.AdamW(model.parameters(), lr=0.1)
    sparsifier.attach(second)
    model[0].weight.data.fill_(1.0)
    loss_of(model, 0).backward()
    second.step()
    assert is_plus_zero(model[0].weight)[~sparsifier.masks["0.weight"]].all()


def test_attaching_to_an_optimizer_with_a_past_clears_its_state():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_of(model, 0).backward()
    optimizer.step()
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    sparsifier.prune_(0)
    sparsifier.attach(optimizer)
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    assert is_plus_zero(momentum)[~sparsifier.masks["0.weight"]].all()


def test_detach_lets_go():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    sparsifier.detach()
    loss_of(model, 0).backward()
    optimizer.step()
    assert (model[0].weight != 0).float().mean() > 0.9
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_another_model_is_refused():
    model = tiny()
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    other = torch.optim.SGD(tiny().parameters(), lr=0.1)
    message = "optimizer: expected an optimizer of the pruned model, got one that holds none of its 2 chosen"
    with pytest.raises(ConfigError, match=message):
        sparsifier.attach(other)


def test_two_optimizers_may_share_a_model():
    model = tiny()
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.9)))
    optimizers = [torch.optim.AdamW(model[index].parameters(), lr=0.1) for index in (0, 4)]
    for optimizer in optimizers:
        sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    loss_of(model, 0).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.9, abs=1e-3)


def test_an_optimizer_for_each_weight_that_steps_within_the_backward_pass():
    model = tiny()
    optimizers = {parameter: torch.optim.Adam([parameter], lr=0.1) for parameter in model.parameters()}
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9))))
    for weight in (model[0].weight, model[4].weight):
        sparsifier.attach(optimizers[weight])

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    for index in range(4):
        sparsifier.before_step(index, 4)
        loss_of(model, index).backward()
        for weight, mask in zip((model[0].weight, model[4].weight), sparsifier.masks.values(), strict=True):
            assert is_plus_zero(weight)[~mask].all()
