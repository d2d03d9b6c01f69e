"""Time of making and applying one set of masks, 50 % of all conv and linear weights, in several ways."""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
import torchvision
from timing import Prepare, Timings, print_json, print_table, set_up
from torch import nn
from torch.nn.utils import prune

from sparsedet.sparsity import Allocation, Global, OneShot, Sparsifier, SparsityConfig, Uniform

SPARSITY = 0.5
BASE = "sparsedet, uniform"


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return the layers that are pruned."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def sparsedet(allocation: Allocation) -> Callable[[nn.Module], Callable[[], object]]:
    """Prune by `Sparsifier`: exact count over all layers, ties by index."""

    def prepare(model: nn.Module) -> Callable[[], object]:
        config = SparsityConfig(schedule=OneShot(sparsity=SPARSITY), allocation=allocation)
        sparsifier = Sparsifier(model, config)
        return lambda: sparsifier.prune_(0)

    return prepare


@torch.no_grad()
def kthvalue(model: nn.Module) -> None:
    """Prune every layer by the threshold that `torch.kthvalue` finds; what ties with it goes too."""
    for layer in layers(model):
        scores = layer.weight.abs()
        threshold = scores.flatten().kthvalue(int(SPARSITY * scores.numel())).values
        layer.weight.mul_(scores > threshold)


def torch_layers(model: nn.Module) -> None:
    """Prune every layer by PyTorch's own utility."""
    for layer in layers(model):
        prune.l1_unstructured(layer, "weight", amount=SPARSITY)  # type: ignore[no-untyped-call]  # torch has no types


def torch_global(model: nn.Module) -> None:
    """Prune all layers by one threshold, by PyTorch's own utility."""
    parameters = [(layer, "weight") for layer in layers(model)]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=SPARSITY)


WAYS: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
    BASE: sparsedet(Uniform()),
    "kthvalue, per layer": lambda model: lambda: kthvalue(model),
    "torch.nn.utils.prune, per layer": lambda model: lambda: torch_layers(model),
    "sparsedet, global": sparsedet(Global()),
    "torch.nn.utils.prune, global": lambda model: lambda: torch_global(model),
}


def measure(name: str, num_rounds: int) -> list[dict[str, object]]:
    """Time every way on fresh copies of the network `name` of torchvision."""
    original = torchvision.models.get_model(name)

    def on_copy(way: str) -> Prepare:
        return lambda: WAYS[way](deepcopy(original))

    timings = Timings({way: on_copy(way) for way in WAYS}, num_rounds)
    return [
        {
            "network": name,
            "way": way,
            "num_rounds": num_rounds,
            "cpu_s": timings.seconds(way),
            "wall_s": timings.seconds(way, "wall"),
            "cpu_ratio": timings.ratio(way, BASE),
        }
        for way in WAYS
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    set_up()
    results = [result for name in options.networks for result in measure(name, options.rounds)]
    print_table(
        ["network", "way", "CPU s", f"/ {BASE}"],
        [
            [result["network"], result["way"], f"{result['cpu_s']:.3f}", f"{result['cpu_ratio']:.2f}"]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
