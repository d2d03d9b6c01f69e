"""One of two processes that prune and train one model together: ``process.py RANK FOLDER`` writes what it found there.

Every case trains the same network on its own half of the images; the other way to the same numbers is one process with
all images.
"""

import io
import json
import os
import sys
import traceback
import warnings
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from sparsedet.common.errors import ConfigError, SparseDetError
from sparsedet.sparsity import (
    NM,
    Activation,
    Calibration,
    Channel,
    Cubic,
    Dynamic,
    Gradient,
    LevelWise,
    Obc,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Uniform,
)

STEPS, STOP = 6, 4
IMAGES = (torch.zeros(1, 24),)
UNIFORM = Uniform()
CONFIGS = {
    "levels": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.7)), allocation=UNIFORM),
    "two_four": SparsityConfig(schedule=OneShot(), pattern=NM(eligibility="divisible")),
    "growing": SparsityConfig(schedule=Dynamic(sparsity=0.6, stop=1.0), update_interval=2, allocation=UNIFORM),
    "soft": SparsityConfig(schedule=Cubic(sparsity=0.7, initial=0.2), update_interval=1, keep_pruned_values=True),
    "channel": SparsityConfig(
        schedule=LevelWise(levels=(0.3, 0.6)), pattern=Channel(), allocation=UNIFORM, scope="chosen"
    ),
    "zeros": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.7)), keep_zeros=True),
}


def make_net():
    """Weights are multiples of 1/8: many tie, some are 0. The norm uses its running statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 9)
    )
    with torch.no_grad():
        net[1].bias.uniform_(-0.2, 0.2)
        for parameter in net.parameters():
            parameter.copy_((parameter * 24).round() / 8)
    return net.eval()


def loss_of(model, step, part):
    images = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
    return (model(images[part]) - 1).square().mean()


def full(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def local(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


class Run:
    """A network in training, whole, in copies or in parts."""

    def __init__(self, kind, wrap, part):
        self.net, self.part = make_net(), part
        sparsifier = Sparsifier(self.net, CONFIGS[kind], IMAGES) if kind == "channel" else None
        self.model = wrap(self.net)
        self.sparsifier = sparsifier or Sparsifier(self.model, CONFIGS[kind])
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        self.evaluate()
        self.sparsifier.attach(self.optimizer)
        self.planned = self.sparsifier.allocate_levels()
        self.masks = []

    @torch.no_grad()
    def evaluate(self):
        """After this FSDP2 leaves the parameters of the outermost module whole."""
        self.model(torch.ones(1, 24))

    def go(self, start, end, check=False):
        for step in range(start, end):
            self.evaluate()
            self.sparsifier.before_step(step, STEPS)
            self.optimizer.zero_grad()
            loss_of(self.model, step, self.part).backward()
            self.optimizer.step()
            self.masks.append({name: mask.clone() for name, mask in self.sparsifier.masks.items()})
            if check:
                self.check()
        return self

    def check(self):
        """Zeros to the bit in all that the processes hold; masks of both processes equal."""
        sparsifier = self.sparsifier
        sparsifier.check_ranks()
        digest = sha256(b"".join(mask.numpy().tobytes() for mask in sparsifier.masks.values())).hexdigest()
        digests = [None, None]
        torch.distributed.all_gather_object(digests, digest)
        assert digests[0] == digests[1]
        layers = {layer.name: layer for layer in sparsifier.measure().layers}
        for name, mask in sparsifier.masks.items():
            weight = self.net.get_parameter(name)
            num_zeros = int((full(weight) == 0).sum())
            assert layers[name].sparsity == num_zeros / mask.numel()  # of the whole weight
            held = [weight, weight.grad]
            if not sparsifier.config.keep_pruned_values:  # which have a momentum
                held.append(self.optimizer.state[weight]["momentum_buffer"])
            for tensor in held:
                assert not full(tensor)[~mask].view(torch.int32).any(), name
            assert (full(weight)[mask] != 0).float().mean() > 0.5, name  # where a unit is dead, what grows stays 0
            assert not mask.all(), name
        for row in sparsifier.dead_channels() if sparsifier.config.pattern.kills_channels else ():
            dead = ~sparsifier.masks[row.name].any(1)
            assert row.num_dead == int(dead.sum()) > 0
            assert row.zeroed == (("0.bias", "1.weight", "1.bias") if row.name == "0.weight" else ("3.bias",))
            assert not any(full(self.net.get_parameter(name))[dead].any() for name in row.zeroed)

    def weights(self):
        return {name: full(value).clone() for name, value in self.net.named_parameters()}

    def state(self):
        whole = StateDictOptions(full_state_dict=True)
        return (
            self.sparsifier.state_dict(),
            get_model_state_dict(self.net, options=whole),
            get_optimizer_state_dict(self.net, self.optimizer, options=whole),
        )

    def load(self, sparsifier, weights, optimizer):
        whole = StateDictOptions(full_state_dict=True)
        self.sparsifier.load_state_dict(sparsifier)
        set_model_state_dict(self.net, weights, options=whole)
        set_optimizer_state_dict(self.net, self.optimizer, optimizer, options=whole)
        return self


def check_equal(run, masks, expected):
    for found, wanted in zip(run.masks, masks, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    weights = run.weights()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


def compare(kind, wrap, alone):
    """A run as that of one process; and one that stops, whose state goes into a plain model or into one of its kind."""
    rank = torch.distributed.get_rank()
    part, masks = slice(4 * rank, 4 * rank + 4), alone[kind].masks
    expected = alone[kind].weights()
    run = Run(kind, wrap, part)
    assert run.planned == alone[kind].planned
    check_equal(run.go(0, STEPS, check=True), masks, expected)
    stream = io.BytesIO()
    torch.save(Run(kind, wrap, part).go(0, STOP).state(), stream)
    written = [stream.getvalue()]
    torch.distributed.broadcast_object_list(written)  # the first process writes for all
    for again in (Run(kind, lambda net: net, slice(0, 8)), Run(kind, wrap, part)):
        state = torch.load(io.BytesIO(written[0]))
        again.load(*state)
        rewritten = again.sparsifier.state_dict()
        assert rewritten.keys() == state[0].keys()
        for key in {"masks", "pruned_values", "gradients"} & state[0].keys():
            assert all(torch.equal(value, state[0][key][name]) for name, value in sorted(rewritten[key].items()))
        check_equal(again.go(STOP, STEPS), masks[STOP:], expected)


def calibration(part):
    batches = [torch.randn(16, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    return Calibration(
        batches[part], lambda model, batch: model(batch), lambda model, batch: (model(batch) - 1).square().mean()
    )


def prune(criterion, wrap, part):
    net = make_net()
    config = SparsityConfig(schedule=LevelWise(levels=(0.4, 0.8)), criterion=criterion)
    sparsifier = Sparsifier(wrap(net), config, calibration=calibration(part))
    for level in range(2):
        sparsifier.prune_(level)
    if isinstance(net, FSDPModule):
        net.reshard()  # what is read here are the parts
    return sparsifier.masks, {name: full(value).clone() for name, value in net.named_parameters()}


def looks_at_data(criterion, expected):
    rank = torch.distributed.get_rank()
    masks, weights = prune(criterion, sharded, slice(2 * rank, 2 * rank + 2))
    wanted_masks, wanted = expected
    num_different = sum(int((mask != wanted_masks[name]).sum()) for name, mask in masks.items())
    assert num_different <= (10 if criterion.updates_weights else 0)  # of 1424; another order of sums rounds
    for name, mask in masks.items():
        assert not weights[name][~mask].view(torch.int32).any()
        assert (weights[name] - wanted[name]).norm() < 0.1 * wanted[name].norm()
        if num_different == 0:
            torch.testing.assert_close(weights[name], wanted[name], rtol=1e-3, atol=1e-4)
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=criterion)
    sparsifier = Sparsifier(sharded(make_net()), config, calibration=calibration(slice(2 * rank, 3)))
    with pytest.raises(ConfigError, match="expected as many batches in each process of a model that is sharded"):
        sparsifier.prune_(0)


def refused():
    """What does not serve a model in parts says so, and what it says to do works."""
    with pytest.raises(ConfigError, match=r"not sharded yet \(FSDP2\).*Make the sparsifier before fully_shard"):
        Sparsifier(sharded(make_net()), CONFIGS["channel"], IMAGES)
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Gradient(), allocation=UNIFORM)
    sparsifier = Sparsifier(sharded(make_net()), config, calibration=calibration(slice(0, 4)))
    with pytest.raises(ConfigError, match=r"weights that are sharded \(FSDP2\).*Make the masks before fully_shard"):
        sparsifier.prune_(0)
    net = make_net()
    sparsifier = Sparsifier(net, config, calibration=calibration(slice(0, 4)))
    sparsifier.prune_(0)
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    model = sharded(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    sparsifier.attach(optimizer)
    loss_of(model, 0, slice(0, 8)).backward()
    optimizer.step()
    for name, mask in masks.items():
        assert torch.equal(sparsifier.masks[name], mask)
        assert not full(net.get_parameter(name))[~mask].any()
        assert not full(net.get_parameter(name).grad)[~mask].any()


def distributed_data_parallel(net):
    return nn.parallel.DistributedDataParallel(net)


def sharded(net):
    for layer in (net[0], net[3]):
        fully_shard(layer)
    fully_shard(net)  # the rest, 9 rows of a weight among it, which are no two equal parts
    assert all(type(parameter).__name__ == "DTensor" for parameter in net.parameters())
    assert local(net[0].weight).shape[0] == 16
    return net


def masks_that_differ():
    net = make_net()
    with torch.no_grad():
        net[3].weight += torch.distributed.get_rank() * torch.randn_like(net[3].weight)
    sparsifier = Sparsifier(net, CONFIGS["levels"])
    with pytest.raises(
        SparseDetError, match="same mask in all 2 processes, got another in process 1 than in process 0"
    ):
        sparsifier.prune_(0)
    assert sparsifier.masks == {}


def left_whole():
    """A forward pass leaves the parameters of the outermost module whole; what is done then reaches the parts."""
    net = make_net()
    fully_shard(net)
    sparsifier, source = (Sparsifier(model, CONFIGS["soft"]) for model in (net, make_net()))
    source.prune_(0)

    def after_a_pass(act, *args):
        with torch.no_grad():
            net(torch.ones(1, 24))
        assert type(net[0].weight) is nn.Parameter
        act(*args)
        net.reshard()
        for name, mask in sparsifier.masks.items():
            assert not full(net.get_parameter(name))[~mask].any(), act

    after_a_pass(sparsifier.attach, torch.optim.SGD(net.parameters(), lr=0.05))
    after_a_pass(sparsifier.load_state_dict, source.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    after_a_pass(sparsifier.apply_)
    after_a_pass(sparsifier.allocate_levels)


WRAPPERS = {"ddp": distributed_data_parallel, "fsdp2": sharded}


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    alone = {kind: Run(kind, lambda net: net, slice(0, 8)).go(0, STEPS) for kind in CONFIGS}
    criteria = {criterion.type: criterion for criterion in (Activation(), Obc())}
    pruned = {name: prune(criterion, lambda net: net, slice(0, 4)) for name, criterion in criteria.items()}
    cases = {"differ": masks_that_differ, "refused": refused, "left_whole": left_whole}
    cases |= {f"fsdp2-{name}": partial(looks_at_data, criteria[name], pruned[name]) for name in criteria}
    for kind in CONFIGS:
        cases |= {f"{way}-{kind}": partial(compare, kind, wrap, alone) for way, wrap in WRAPPERS.items()}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, case in cases.items():
        try:
            case()
            found[name] = ""
        except BaseException:  # pytest's are no exceptions
            found[name] = traceback.format_exc()
            break  # the other process may wait for this one
        torch.distributed.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
    os._exit(0)  # torch now and then aborts when it tears down what has talked over gloo


if __name__ == "__main__":
    main()
