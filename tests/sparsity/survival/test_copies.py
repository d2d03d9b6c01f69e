"""Copies of a pruned model and of its optimizer: they hold the zeros, and nothing of the sparsifier."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from sparsedet.sparsity import OneShot, Sparsifier, SparsityConfig

CONFIG = SparsityConfig(schedule=OneShot(sparsity=0.7))


@pytest.fixture
def pruned(net, steps):
    """A pruned network in training: model, optimizer, sparsifier."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    steps(net, optimizer)
    return net, optimizer, sparsifier


def through_torch_save(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch_save": through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_holds_the_zeros_and_is_a_plain_model(way, pruned, fresh_net, steps, holds):
    net, _, sparsifier = pruned
    twin = COPIES[way](net)
    holds(sparsifier.masks, twin)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in net.state_dict().items())
    assert twin[6].weight is twin[7].weight
    steps(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    assert (twin[5].weight != 0).all()  # nothing prunes it: it trains dense
    twin.load_state_dict(fresh_net().state_dict())  # nor cuts what is loaded into it
    assert (twin[5].weight != 0).all()
    holds(sparsifier.masks, net)


def test_the_pickle_of_a_pruned_model_needs_no_sparsedet(pruned, tmp_path):
    net, _, sparsifier = pruned
    torch.save(net, tmp_path / "net.pt")
    code = (
        "import sys, torch; sys.modules['sparsedet'] = None; net = torch.load(sys.argv[1], weights_only=False); "
        "net.load_state_dict(net.state_dict()); print(int((net[5].weight == 0).sum()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "net.pt"], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == int((~sparsifier.masks["5.weight"]).sum())


def test_the_state_dict_has_the_keys_of_the_dense_model(pruned, fresh_net, holds):
    net, _, sparsifier = pruned
    dense = fresh_net()
    assert list(net.state_dict()) == list(dense.state_dict())
    dense.load_state_dict(net.state_dict(), strict=True)
    holds(sparsifier.masks, dense)


def test_safetensors_keep_zeros_and_shared_weights(pruned, fresh_net, holds, tmp_path):
    net, _, sparsifier = pruned
    save_model(net, str(tmp_path / "net.safetensors"))
    assert len(load_file(tmp_path / "net.safetensors").keys() & {"6.weight", "7.weight"}) == 1  # stored once
    from safetensors.torch import load_model

    twin = fresh_net()
    load_model(twin, str(tmp_path / "net.safetensors"))
    holds(sparsifier.masks, twin)
    assert torch.equal(twin[7].weight, net[6].weight)


OPTIMIZERS = {
    "rebuilt": lambda net, _: torch.optim.AdamW(net.parameters(), lr=0.01),
    "loaded": lambda net, optimizer: loaded(net, optimizer),
}


def loaded(net, optimizer):
    other = torch.optim.AdamW(net.parameters(), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize("way", OPTIMIZERS)
def test_another_optimizer_of_the_same_model(way, pruned, steps, holds):
    net, optimizer, sparsifier = pruned
    other = OPTIMIZERS[way](net, optimizer)
    sparsifier.attach(other)
    with torch.no_grad():
        net[5].weight.add_(1.0)
    steps(net, other, 1)
    holds(sparsifier.masks, net)


@pytest.mark.parametrize("way", COPIES)
def test_model_and_optimizer_copied_together_go_on_with_a_sparsifier_of_their_own(way, pruned, steps, holds):
    net, optimizer, sparsifier = pruned
    twin, twins_optimizer = COPIES[way]((net, optimizer))
    assert twins_optimizer.param_groups[0]["params"][0] is twin[0].weight
    twins = Sparsifier(twin, CONFIG)
    twins.attach(twins_optimizer)
    state = sparsifier.state_dict()
    before = {name: mask.view(torch.int8).clone() for name, mask in state["masks"].items()}
    twins.load_state_dict(state)
    for model, its_optimizer in ((net, optimizer), (twin, twins_optimizer)):
        steps(model, its_optimizer)
        holds(sparsifier.masks, model)
    assert torch.equal(net[5].weight, twin[5].weight)
    assert all(torch.equal(mask.view(torch.int8), before[name]) for name, mask in state["masks"].items())


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_model_optimizer_and_sparsifier_copied_together(way, order, pruned, fresh_net, steps, holds):
    net, optimizer, sparsifier = pruned
    copies = dict(zip(order, COPIES[way](tuple(pruned[index] for index in order)), strict=True))
    twin, twins_optimizer, twins = copies[0], copies[1], copies[2]
    for model, its_optimizer, its_sparsifier in ((net, optimizer, sparsifier), (twin, twins_optimizer, twins)):
        with torch.no_grad():
            model[5].weight.add_(1.0)
        steps(model, its_optimizer)
        holds(sparsifier.masks, model)
        assert its_sparsifier.level == sparsifier.level
        model.load_state_dict(fresh_net().state_dict())
        holds(sparsifier.masks, model)
    twins.detach()
    twins.attach(twins_optimizer)
    twin.load_state_dict(fresh_net().state_dict())
    holds(sparsifier.masks, twin)


def test_a_copied_optimizer_alone_trains_no_parameter_of_the_model(pruned, steps, holds):
    net, optimizer, sparsifier = pruned
    twin = copy.deepcopy(optimizer)
    with pytest.raises(Exception, match="expected an optimizer of the pruned model"):
        sparsifier.attach(twin)
    before = net[5].weight.clone()
    twin.step()
    assert torch.equal(net[5].weight, before)
    steps(net, optimizer)
    holds(sparsifier.masks, net)


def test_two_models_in_one_process_do_not_meet(fresh_net, steps, holds):
    pairs = []
    for sparsity in (0.5, 0.8):
        net = fresh_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier(net, SparsityConfig(schedule=OneShot(sparsity=sparsity)))
        sparsifier.attach(optimizer)
        sparsifier.prune_(0)
        pairs.append((net, optimizer, sparsifier, sparsity))
    for net, optimizer, sparsifier, sparsity in pairs:
        steps(net, optimizer)
        holds(sparsifier.masks, net)
        assert sparsifier.measure().measured_sparsity == pytest.approx(sparsity, abs=1e-3)
    pairs[0][2].detach()
    for (net, optimizer, sparsifier, _), is_held in zip(pairs, (False, True), strict=True):
        net[5].weight.data.fill_(1.0)
        steps(net, optimizer, 1)
        assert bool((net[5].weight[~sparsifier.masks["5.weight"]] == 0).all()) == is_held


def test_a_layer_that_is_replaced_is_found_by_a_new_sparsifier_only(pruned, holds):
    net, _, sparsifier = pruned
    net[5] = nn.Linear(256, 32)
    again = Sparsifier(net, CONFIG)
    again.prune_(0)
    holds(again.masks, net)
    assert sparsifier.masks["5.weight"].shape == (32, 256)
