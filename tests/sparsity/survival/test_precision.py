"""Mixed precision, accumulated gradients, other dtypes and devices."""

import pytest
import torch
from torch import nn

from sparsedet.sparsity import LevelWise, OneShot, Sparsifier, SparsityConfig

LEVELS = SparsityConfig(schedule=LevelWise(levels=(0.5, 0.8)))


def start(net, optimizer):
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    return sparsifier


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_gradient_scaler(dtype, fused, net, loss, holds):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sparsifier = start(net, optimizer)
    for step in range(4):
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            value = loss(net, step)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        net[5].weight.data.add_(0.1)  # whatever stands there
        scaler.step(optimizer)
        scaler.update()
        holds(sparsifier.masks, net)
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.8, abs=1e-3)


def test_a_step_that_the_scaler_skips_changes_nothing(net, loss, holds):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sparsifier = start(net, optimizer)
    sparsifier.before_step(0, 4)
    before = net[5].weight.clone()
    scaler.scale(loss(net) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net[5].weight, before)
    assert scaler.get_scale() == 2.0**9
    holds(sparsifier.masks, net)


def test_accumulated_gradients_are_those_of_kept_weights(net, fresh_net, loss, holds):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    sparsifier = start(net, optimizer)
    sparsifier.before_step(0, 2)
    plain = fresh_net()
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        for seed in range(3):
            (loss(model.eval(), seed) / 3).backward()
    for name, mask in sparsifier.masks.items():
        expected = plain.get_parameter(name).grad * mask
        assert torch.equal(net.get_parameter(name).grad, expected)
        assert plain.get_parameter(name).grad[~mask].any()
    optimizer.step()
    holds(sparsifier.masks, net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_model_changes_its_dtype_between_steps(dtype, net, steps, loss, holds):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    sparsifier = start(net, optimizer)
    sparsifier.prune_(0)
    steps(net, optimizer)
    net.to(dtype)
    optimizer.zero_grad()
    images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    net(images).float().square().mean().backward()
    assert all(not net.get_parameter(name).grad[~mask].any() for name, mask in sparsifier.masks.items())
    optimizer.step()
    holds(sparsifier.masks, net)
    sparsifier.prune_(1)
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.8, abs=1e-3)
    net.float()
    steps(net, torch.optim.SGD(net.parameters(), lr=0.0), 1)
    sparsifier.apply_()
    holds(sparsifier.masks, net)


def test_by_way_of_no_memory_and_back(net, fresh_net, steps, holds):
    """A model without memory (meta) keeps its masks; filled anew, it is pruned as it was."""
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.prune_(1)
    masks = sparsifier.masks
    net.to("meta")
    sparsifier.apply_()
    net.to_empty(device="cpu")
    net[7].weight = net[6].weight
    net.load_state_dict(fresh_net().state_dict())
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    holds(masks, net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    steps(net, optimizer)
    holds(masks, net)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_to_the_gpu_and_back(net, steps, holds):
    sparsifier = Sparsifier(net, SparsityConfig(schedule=OneShot(sparsity=0.7)))
    sparsifier.prune_(0)
    net.cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    sparsifier.attach(optimizer)
    for seed in range(3):
        optimizer.zero_grad()
        images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).cuda()
        with torch.autocast("cuda", torch.float16):
            value = net(images).square().mean()
        value.backward()
        optimizer.step()
        assert sparsifier.masks["5.weight"].is_cuda
        holds(sparsifier.masks, net)
    net.cpu()
    sparsifier.apply_()
    steps(net, torch.optim.SGD(net.parameters(), lr=0.0), 1)
    holds(sparsifier.masks, net)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_another_memory_layout(layout, net, steps, holds):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier = start(net, optimizer)
    sparsifier.prune_(0)
    net.to(memory_format=layout)
    steps(net, optimizer)
    sparsifier.prune_(1)
    steps(net, optimizer)
    holds(sparsifier.masks, net)
