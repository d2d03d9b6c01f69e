"""One of two processes that prune and train one model together: ``process.py RANK FOLDER`` writes what it found there.

Every case trains the same network on its own half of the images; the other way to the same numbers is one process with
all images.
"""

import json
import sys
import traceback
import warnings
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from sparsedet.common.errors import SparseDetError
from sparsedet.sparsity import NM, Cubic, Dynamic, LevelWise, OneShot, Sparsifier, SparsityConfig, Uniform

STEPS = 6
CONFIGS = {
    "levels": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.7))),
    "two_four": SparsityConfig(schedule=OneShot(), pattern=NM(eligibility="divisible")),
    "growing": SparsityConfig(schedule=Dynamic(sparsity=0.6, stop=1.0), update_interval=2, allocation=Uniform()),
    "soft": SparsityConfig(schedule=Cubic(sparsity=0.7, initial=0.2), update_interval=1, keep_pruned_values=True),
}


def make_net():
    """Weights are multiples of 1/8: many tie."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 24).round() / 8)
    return net


def loss_of(model, step, part):
    images = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
    return (model(images[part]) - 1).square().mean()


def full(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def local(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


def train(model, net, config, part, check):
    """Return the masks after every step and the weights after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(optimizer)
    masks = []
    for step in range(STEPS):
        sparsifier.before_step(step, STEPS)
        optimizer.zero_grad()
        loss_of(model, step, part).backward()
        optimizer.step()
        masks.append({name: mask.clone() for name, mask in sparsifier.masks.items()})
        if check:
            check_step(sparsifier, net)
    return sparsifier, masks, {name: full(value).clone() for name, value in net.named_parameters()}


def check_step(sparsifier, net):
    """Zeros to the bit, in the weights and in what the process holds of gradients; masks of both processes equal."""
    sparsifier.check_ranks()
    digest = sha256(b"".join(mask.numpy().tobytes() for mask in sparsifier.masks.values())).hexdigest()
    digests = [None, None]
    torch.distributed.all_gather_object(digests, digest)
    assert digests[0] == digests[1]
    layers = {layer.name: layer for layer in sparsifier.measure().layers}
    for name, mask in sparsifier.masks.items():
        num_zeros = int((full(net.get_parameter(name)) == 0).sum())
        assert layers[name].sparsity == num_zeros / mask.numel()  # of the whole weight
        weight = net.get_parameter(name)
        for tensor in (weight, weight.grad):
            assert not full(tensor)[~mask].view(torch.int32).any(), name
        assert (full(weight)[mask] != 0).float().mean() > 0.5, name  # where a unit is dead, what grows stays 0
        assert not mask.all(), name


def compare(kind, wrap, alone):
    rank = torch.distributed.get_rank()
    net, config = make_net(), CONFIGS[kind]
    sparsifier, masks, weights = train(wrap(net), net, config, slice(4 * rank, 4 * rank + 4), check=True)
    _, expected_masks, expected = alone[kind]
    for found, wanted in zip(masks, expected_masks, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    # the state goes into a plain model, whose names are the same, and back into a sharded one
    plain, again = make_net(), make_net()
    state = sparsifier.state_dict()
    for model in (plain, wrap(again)):
        restored = Sparsifier(model, config)
        restored.load_state_dict(state)
        assert restored.level == sparsifier.level
        assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in restored.masks.items())
    for name, mask in sparsifier.masks.items():
        assert not full(again.get_parameter(name))[~mask].any()
        assert not full(plain.get_parameter(name))[~mask].any()


def distributed_data_parallel(net):
    return nn.parallel.DistributedDataParallel(net)


def sharded(net):
    for layer in (net[0], net[2], net[4]):
        fully_shard(layer)
    fully_shard(net)
    assert all(type(parameter).__name__ == "DTensor" for parameter in net.parameters())
    assert local(net[0].weight).shape[0] == 16
    return net


def masks_that_differ():
    net = make_net()
    with torch.no_grad():
        net[2].weight += torch.distributed.get_rank() * torch.randn_like(net[2].weight)
    sparsifier = Sparsifier(net, CONFIGS["levels"])
    with pytest.raises(
        SparseDetError, match="same mask in all 2 processes, got another in process 1 than in process 0"
    ):
        sparsifier.prune_(0)
    assert sparsifier.masks == {}


WRAPPERS = {"ddp": distributed_data_parallel, "fsdp2": sharded}


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    nets = {kind: make_net() for kind in CONFIGS}
    alone = {kind: train(net, net, CONFIGS[kind], slice(0, 8), check=False) for kind, net in nets.items()}
    cases = {"differ": masks_that_differ}
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


if __name__ == "__main__":
    main()
