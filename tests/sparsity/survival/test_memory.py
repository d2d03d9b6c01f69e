"""What pruning holds in memory: a byte for each masked weight, however often it is done."""

import gc
import weakref

import pytest
import torch
from torch import nn

from sparsedet.sparsity import (
    Calibration,
    Dynamic,
    Gradient,
    LevelWise,
    Magnitude,
    OneShot,
    Sparsifier,
    SparsityConfig,
)


def num_bytes():
    """Bytes of all tensors that are alive, each memory once."""
    gc.collect()
    memories = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.layout is torch.strided and thing.device.type == "cpu":
            memory = thing.untyped_storage()
            memories[memory.data_ptr()] = memory.nbytes()
    return sum(memories.values())


CONFIGS = {
    "fixed": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6, 0.9))),
    "soft": SparsityConfig(
        schedule=OneShot(sparsity=0.7), mask_update="every_k_steps", update_interval=2, keep_pruned_values=True
    ),
    "growing": SparsityConfig(schedule=Dynamic(sparsity=0.7, stop=1.0), update_interval=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_prune_and_train_again_and_again(kind, net, loss):
    def round_():
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        sparsifier = Sparsifier(net, CONFIGS[kind])
        sparsifier.attach(optimizer)
        for step in range(6):
            sparsifier.before_step(step, 6)
            optimizer.zero_grad()
            loss(net, step).backward()
            optimizer.step()
        optimizer.zero_grad()
        sparsifier.detach()

    found = []
    for _ in range(3):
        round_()
        found.append(num_bytes())
    assert found == found[:1] * 3
    assert not net[5].weight._post_accumulate_grad_hooks
    assert not net[5]._load_state_dict_post_hooks


def test_many_changes_of_the_masks_of_one_sparsifier(net, loss):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier = Sparsifier(net, CONFIGS["growing"])
    sparsifier.attach(optimizer)
    found = []
    for step in range(20):
        sparsifier.before_step(step, 20)
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()
        if step in (4, 18):
            found.append(num_bytes())
    assert found[0] == found[1]
    assert len(net[5]._load_state_dict_post_hooks) == 1


def test_optimizers_and_parameters_that_are_gone_are_let_go(net, fresh_net, steps):
    sparsifier = Sparsifier(net, CONFIGS["fixed"])
    sparsifier.prune_(0)
    watched = []
    for _ in range(2):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        sparsifier.attach(optimizer)
        steps(net, optimizer, 1)
        watched += [weakref.ref(optimizer), weakref.ref(net[5].weight)]
        del optimizer
        net.load_state_dict(fresh_net().state_dict(), assign=True)
    gc.collect()
    assert [reference() for reference in watched] == [None] * 4


@pytest.mark.parametrize("criterion", [Magnitude(), Gradient()])
def test_a_byte_for_each_masked_weight(criterion, net, loss):
    calibration = Calibration([0], loss, loss)
    before = num_bytes()
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=criterion)
    sparsifier = Sparsifier(net, config, calibration=calibration)
    sparsifier.prune_(0)
    num_weights = sum(row.numel for row in sparsifier.selection)
    assert num_bytes() - before == num_weights


def test_a_model_goes_with_what_pruned_it(fresh_net):
    net = fresh_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = Sparsifier(net, CONFIGS["fixed"])
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    watched = weakref.ref(net), weakref.ref(sparsifier._masked)
    del sparsifier
    gc.collect()
    assert None not in (reference() for reference in watched)  # the optimizer needs the masks
    del optimizer
    gc.collect()
    assert [reference() for reference in watched] == [net, None]
    del net
    gc.collect()
    assert watched[0]() is None
