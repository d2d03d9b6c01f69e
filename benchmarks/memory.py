"""Memory that pruning holds above that of a dense model in training, in bytes per weight that is masked.

Counted are the tensors that are alive after some training steps, each memory once: weights, gradients, optimizer state,
masks and whatever a tool keeps beside them. What lives only inside a forward or backward pass is not counted.
"""

import argparse
import gc
from collections.abc import Callable, Sequence

import peers
import torch
import torchvision
from timing import print_json, print_table, set_up
from torch import nn

from sparsedet.sparsity import NM, Global, OneShot, Sparsifier, SparsityConfig


def sparsedet(config: SparsityConfig) -> Callable[[nn.Module, torch.optim.Optimizer], object]:
    """Prune by `Sparsifier`."""

    def prune(model: nn.Module, optimizer: torch.optim.Optimizer) -> Sparsifier:
        sparsifier = Sparsifier(model, config)
        sparsifier.prune_(0)
        sparsifier.attach(optimizer)
        return sparsifier

    return prune


def peer(prune: Callable[[nn.Module], None]) -> Callable[[nn.Module, torch.optim.Optimizer], object]:
    """Prune as another tool does."""

    def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        prune(model)
        optimizer.param_groups.clear()  # other tools put other parameters in the place of the weights
        optimizer.add_param_group({"params": list(model.parameters())})

    return prepare


WAYS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], object]] = {
    "dense": lambda model, optimizer: None,
    "sparsedet, 50 %": sparsedet(SparsityConfig(schedule=OneShot(sparsity=peers.SPARSITY), allocation=Global())),
    "sparsedet, 2:4": sparsedet(SparsityConfig(schedule=OneShot(), pattern=NM())),
    "MSBench's rule": peer(peers.msbench),
    "torch.nn.utils.prune": peer(peers.torch_prune),
    "torch.ao.pruning": peer(peers.torch_ao),
}


def live_bytes() -> int:
    """Return the size of all memory that live tensors hold."""
    gc.collect()
    sizes = {}
    for found in gc.get_objects():
        # isinstance would ask the object, and some warn; tensors of other classes may have no memory of their own
        is_tensor = type(found) in (torch.Tensor, nn.Parameter)
        if is_tensor and found.layout is torch.strided:
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def held(name: str, way: str) -> int:
    """Return the bytes that training the network `name` of torchvision holds, pruned by `way`, after two steps."""
    before = live_bytes()
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    keep = WAYS[way](model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.ones(2, 3, 64, 64)).square().mean())
        optimizer.step()
    after = live_bytes()
    del keep
    return after - before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision")
    options = parser.parse_args(arguments)
    set_up()
    results: list[dict[str, object]] = []
    for name in options.networks:
        num_weights = sum(layer.weight.numel() for layer in peers.layers(torchvision.models.get_model(name)))
        sizes = {way: held(name, way) for way in WAYS}
        for way, size in sizes.items():
            above = size - sizes["dense"]
            row = {"size_bytes": size, "above_dense_bytes": above, "bytes_per_weight": above / num_weights}
            results.append({"network": name, "way": way, "num_weights": num_weights, **row})
    print_table(
        ["network", "way", "MB", "above dense, MB", "bytes per weight"],
        [
            [
                result["network"],
                result["way"],
                f"{result['size_bytes'] / 1e6:.1f}",
                f"{result['above_dense_bytes'] / 1e6:.1f}",
                f"{result['bytes_per_weight']:.2f}",
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
