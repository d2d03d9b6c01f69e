"""torch.compile, before and after pruning; of the model and of the optimizer's step."""

import copy

import pytest
import torch

from sparsedet.sparsity import Activation, Calibration, LevelWise, Sparsifier, SparsityConfig

LEVELS = SparsityConfig(schedule=LevelWise(levels=(0.5, 0.8)))


@pytest.fixture(autouse=True)
def _nothing_compiled_stays():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(net, loss, holds, compile_at, backend):
    """Train two levels, with the model compiled before, between or never; return its weights."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    model = torch.compile(net, backend=backend) if compile_at == "before" else net
    sparsifier = Sparsifier(model, LEVELS)
    sparsifier.attach(optimizer)
    for step in range(4):
        if step == 2 and compile_at == "between":
            model = torch.compile(net, backend=backend)
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        loss(model, step).backward()
        for name, mask in sparsifier.masks.items():
            assert not net.get_parameter(name).grad[~mask].any()
        optimizer.step()
        holds(sparsifier.masks, net)
    images = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(model.eval()(images), net.eval()(images))
    return net.state_dict()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_trains_as_the_plain_one(backend, net, loss, holds):
    expected = trained(copy.deepcopy(net), loss, holds, "never", backend)
    for compile_at in ("before", "between"):
        found = trained(copy.deepcopy(net), loss, holds, compile_at, backend)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_in_place_compilation(net, loss, steps, holds):
    net.compile(backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.prune_(1)
    steps(net, optimizer)
    holds(sparsifier.masks, net)


def test_a_compiled_step_of_the_optimizer(net, loss, holds):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for index in range(4):
        sparsifier.before_step(index, 4)
        optimizer.zero_grad()
        loss(net, index).backward()
        net[5].weight.data.add_(0.1)  # whatever stands there
        step()
        holds(sparsifier.masks, net)


def test_compiled_parts_are_seen_by_a_criterion(net):
    """Code that is compiled already would not call the hooks that look at inputs."""
    batches = [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = []
    for compiles in (False, True):
        model = copy.deepcopy(net).eval()
        if compiles:
            model[3].compile(backend="eager")
            model[5] = torch.compile(model[5], backend="eager")
            with torch.no_grad():
                model(batches[0])
        calibration = Calibration(batches, lambda model, batch: model(batch))
        sparsifier = Sparsifier(
            model, SparsityConfig(schedule=LevelWise(levels=(0.5,)), criterion=Activation()), calibration=calibration
        )
        sparsifier.prune_(0)
        found.append(sparsifier.masks)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())
