"""Weights are loaded into a pruned model: it stays pruned; and masks are made of zeros that are there."""

import copy

import pytest
import torch
from torch import nn

from sparsedet.common.errors import CheckpointError, ConfigError, UnreachableTargetError
from sparsedet.sparsity import (
    NM,
    Block,
    Channel,
    Cubic,
    Dynamic,
    LevelWise,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Uniform,
    check_n_m,
)

LEVELS = SparsityConfig(schedule=LevelWise(levels=(0.5, 0.8)))


def pruned(net, level=1):
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.prune_(level)
    return sparsifier


def sparse_state(net, sparsity):
    """State of a copy of `net` with zeros at random places, another number in every weight."""
    state = copy.deepcopy(net.state_dict())
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if value.ndim > 1 and name != "7.weight":
            value[torch.rand(value.shape, generator=generator) < sparsity] = -0.0
    state["7.weight"] = state["6.weight"]
    return state


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("source", ["dense", "sparse"])
def test_what_is_loaded_is_pruned_at_once(source, assign, net, fresh_net, loss, holds):
    sparsifier = pruned(net)
    state = fresh_net().state_dict() if source == "dense" else sparse_state(fresh_net(), 0.3)
    net.load_state_dict({name: value.clone() for name, value in state.items()}, assign=assign)
    if source == "dense":
        holds(sparsifier.masks, net)
    for name, mask in sparsifier.masks.items():
        assert torch.equal(net.get_parameter(name), torch.where(mask, state[name], 0.0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier.attach(optimizer)  # with `assign` the parameters are others now
    loss(net).backward()
    assert all(not net.get_parameter(name).grad[~mask].any() for name, mask in sparsifier.masks.items())
    optimizer.step()
    assert all(not net.get_parameter(name)[~mask].any() for name, mask in sparsifier.masks.items())


def test_so_is_what_is_loaded_into_a_part_or_through_a_wrapper(net, fresh_net, holds):
    sparsifier = pruned(net)
    dense = fresh_net().state_dict()
    net[5].load_state_dict({"weight": dense["5.weight"], "bias": dense["5.bias"]})
    holds(sparsifier.masks, net)
    nn.DataParallel(net).load_state_dict({f"module.{name}": value for name, value in dense.items()})
    holds(sparsifier.masks, net)
    net[7].load_state_dict({"weight": dense["7.weight"] + 1, "bias": dense["7.bias"]})  # shared with 6
    holds(sparsifier.masks, net)


def test_what_follows_dead_channels_is_zeroed_too(net, fresh_net):
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), pattern=Channel(), allocation=Uniform(), scope="chosen")
    sparsifier = Sparsifier(net, config, (torch.zeros(1, 3, 4, 4),))
    sparsifier.prune_(0)
    net.load_state_dict({name: torch.ones_like(value) for name, value in fresh_net().state_dict().items()})
    dead = ~sparsifier.masks["0.weight"].flatten(1).any(1)
    assert dead.any()
    assert not net[0].bias[dead].any()
    assert not net[1].weight[dead].any()
    assert net[1].weight[~dead].all()


def test_masks_that_were_loaded_do_the_same(net, fresh_net, holds):
    state = pruned(fresh_net()).state_dict()
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.load_state_dict(state)
    holds(sparsifier.masks, net)
    net.load_state_dict(fresh_net().state_dict())
    holds(sparsifier.masks, net)


def test_a_state_of_no_masks_lets_weights_in(net, fresh_net):
    state = Sparsifier(net, LEVELS).state_dict()
    sparsifier = pruned(net)
    sparsifier.load_state_dict(state)
    net.load_state_dict(fresh_net().state_dict())
    assert (net[5].weight != 0).all()
    assert sparsifier.level is None


def test_a_detached_sparsifier_lets_weights_in(net, fresh_net, holds):
    sparsifier = pruned(net, level=0)
    sparsifier.detach()
    net.load_state_dict(fresh_net().state_dict())
    assert (net[5].weight != 0).all()
    sparsifier.apply_()
    holds(sparsifier.masks, net)
    sparsifier.prune_(1)  # new masks watch again
    net.load_state_dict(fresh_net().state_dict())
    holds(sparsifier.masks, net)


def test_a_sparsifier_that_is_gone_lets_weights_in(net, fresh_net):
    pruned(net)
    net.load_state_dict(fresh_net().state_dict())
    assert (net[5].weight != 0).all()


def test_an_earlier_level_is_loaded_state_first(net):
    sparsifier = pruned(net, level=0)
    early = copy.deepcopy({"model": net.state_dict(), "sparsifier": sparsifier.state_dict()})
    sparsifier.prune_(1)
    net.load_state_dict(early["model"])
    message = (
        "masks: expected to be loaded before the weights, got weights of '[^']+' that the masks in use have pruned"
    )
    with pytest.raises(CheckpointError, match=message):
        sparsifier.load_state_dict(early["sparsifier"])
    assert sparsifier.level == 1
    sparsifier.prune_(1)
    net.load_state_dict(early["model"])  # again, and nothing is said as long as the masks stay
    other = Sparsifier(net, LEVELS)
    other.load_state_dict(early["sparsifier"])
    del sparsifier
    net.load_state_dict(early["model"])
    assert all(torch.equal(value, early["model"][name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("then", ["made", "loaded"])
def test_what_was_cut_is_forgotten_with_new_masks(then, net, fresh_net):
    sparsifier = pruned(net, level=0)
    early = copy.deepcopy({"model": net.state_dict(), "sparsifier": sparsifier.state_dict()})
    if then == "loaded":
        sparsifier.prune_(1)
    net.load_state_dict(fresh_net().state_dict())
    if then == "loaded":
        sparsifier.load_state_dict(sparsifier.state_dict())
    else:
        sparsifier.prune_(1)
    sparsifier.load_state_dict(early["sparsifier"])
    net.load_state_dict(early["model"])
    assert all(torch.equal(value, early["model"][name]) for name, value in net.state_dict().items())


def test_a_later_level_may_come_after_its_weights(net, holds):
    sparsifier = pruned(net, level=1)
    late = copy.deepcopy({"model": net.state_dict(), "sparsifier": sparsifier.state_dict()})
    other_net = copy.deepcopy(net)
    sparsifier = pruned(other_net, level=0)
    other_net.load_state_dict(late["model"])
    sparsifier.load_state_dict(late["sparsifier"])
    assert sparsifier.level == 1
    holds(sparsifier.masks, other_net)
    assert all(torch.equal(value, late["model"][name]) for name, value in other_net.state_dict().items())


def test_masks_of_zeros_keep_them_through_training(net, steps, holds):
    net.load_state_dict(sparse_state(net, 0.4))
    zeros = {name: value == 0 for name, value in net.named_parameters() if value.ndim > 1}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.masks_from_zeros_()
    assert all(torch.equal(~mask, zeros[name]) for name, mask in sparsifier.masks.items())
    assert sparsifier.level is None
    steps(net, optimizer)
    holds(sparsifier.masks, net)
    twin = Sparsifier(net, LEVELS)
    twin.load_state_dict(sparsifier.state_dict())
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in twin.masks.items())
    for step in range(2):  # and the levels go on from there
        sparsifier.before_step(step, 2)
        assert all(not (mask & zeros[name]).any() for name, mask in sparsifier.masks.items())
        assert sparsifier.measure().measured_sparsity == pytest.approx((0.5, 0.8)[step], abs=1e-3)


@pytest.mark.parametrize("order", ["before", "after"])
def test_keep_zeros_in_a_configuration(order, net, fresh_net):
    state = sparse_state(net, 0.4)
    state["0.weight"][:, 0] = 0  # more than is asked for
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Uniform(), keep_zeros=True)
    sparsifier = Sparsifier(net, config) if order == "before" else None
    net.load_state_dict(state)
    sparsifier = sparsifier or Sparsifier(net, config)
    planned = sparsifier.allocate(0)
    sparsifier.before_step(0, 1)
    for name, mask in sparsifier.masks.items():
        assert not (mask & (state[name] == 0)).any()
        assert float((~mask).double().mean()) == planned[name]
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_target_below_the_zeros_is_refused(net):
    net.load_state_dict(sparse_state(net, 0.4))
    sparsifier = Sparsifier(net, SparsityConfig(schedule=OneShot(sparsity=0.3), keep_zeros=True))
    with pytest.raises(UnreachableTargetError, match="expected between"):
        sparsifier.before_step(0, 1)


def test_a_gradual_schedule_waits_until_it_asks_for_more(net):
    net.load_state_dict(sparse_state(net, 0.4))
    zeros = {name: value == 0 for name, value in net.named_parameters() if value.ndim > 1}
    config = SparsityConfig(schedule=Cubic(sparsity=0.6, last=1.0), update_interval=1, keep_zeros=True)
    sparsifier = Sparsifier(net, config)
    found = []
    for step in range(6):
        sparsifier.before_step(step, 6)
        found.append(sparsifier.measure().measured_sparsity)
        assert all(not (mask & zeros[name]).any() for name, mask in sparsifier.masks.items())
        with torch.no_grad():
            for parameter in net.parameters():  # as training does
                parameter.add_(torch.randn_like(parameter))
        sparsifier.apply_()
    assert found[0] == found[1] == pytest.approx(0.4, abs=0.02)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.6, abs=1e-3)


def test_kept_weights_that_became_zero_do_not_go_in_the_place_of_pruned_ones():
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[5.0, 6, 7, 8, 1, 2, 3, 4]]))
    sparsifier = Sparsifier(layer, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.625)), allocation=Uniform()))
    sparsifier.prune_(0)
    layer.weight.data[0, :2] = 0
    sparsifier.prune_(1)
    assert sparsifier.masks["weight"].tolist() == [[False, True, True, True, False, False, False, False]]


def test_two_to_four_of_a_matrix_with_zeros():
    layer = nn.Linear(16, 8)
    layer.weight.data[:, :3] = 0  # three of the first four
    sparsifier = Sparsifier(layer, SparsityConfig(schedule=OneShot(), pattern=NM(), keep_zeros=True))
    sparsifier.prune_(0)
    assert not sparsifier.masks["weight"][:, :3].any()
    assert (sparsifier.masks["weight"].view(8, 4, 4).sum(2) <= 2).all()
    assert check_n_m(layer.weight, 2, 4) == 0


@pytest.mark.parametrize("pattern", [Block(shape=(2, 1)), Channel()])
def test_patterns_of_larger_units_are_refused(pattern, net):
    message = f"keep_zeros: expected false with the pattern {pattern.label}, whose zeros come in larger units, got true"
    with pytest.raises(ValueError, match=message):
        SparsityConfig(schedule=OneShot(sparsity=0.5), pattern=pattern, keep_zeros=True)
    sparsifier = Sparsifier(
        net, SparsityConfig(schedule=OneShot(sparsity=0.5), pattern=pattern), (torch.zeros(1, 3, 4, 4),)
    )
    with pytest.raises(ConfigError, match="masks_from_zeros_: expected the pattern unstructured or N:M"):
        sparsifier.masks_from_zeros_()


def test_growth_may_begin_with_the_zeros(net):
    net.load_state_dict(sparse_state(net, 0.4))
    config = SparsityConfig(schedule=Dynamic(sparsity=0.5), keep_zeros=True)
    sparsifier = Sparsifier(net, config)
    sparsifier.before_step(0, 10)
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.5, abs=1e-3)
