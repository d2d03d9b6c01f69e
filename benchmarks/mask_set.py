"""Time of making and applying one set of masks to all conv and linear weights, in several ways."""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import peers
import torchvision
from timing import Prepare, Timings, print_json, print_table, set_up
from torch import nn

from sparsedet.sparsity import NM, NM2D, Global, OneShot, Sparsifier, SparsityConfig, Uniform

Way = Callable[[nn.Module], Callable[[], object]]
"""Prepares a model and returns what is timed."""


def sparsedet(**fields: Any) -> Way:
    """Prune by `Sparsifier`: exact counts, ties by index."""

    def prepare(model: nn.Module) -> Callable[[], object]:
        sparsifier = Sparsifier(model, SparsityConfig(**fields))
        return lambda: sparsifier.prune_(0)

    return prepare


def peer(prune: Callable[[nn.Module], object]) -> Way:
    """Prune as another tool does."""
    return lambda model: partial(prune, model)


HALF = OneShot(sparsity=peers.SPARSITY)
PATTERNS: dict[str, dict[str, Way]] = {
    "50 %": {
        "sparsedet, uniform": sparsedet(schedule=HALF, allocation=Uniform()),
        "MSBench's rule": peer(partial(peers.prune_by, peers.top_k_mask)),
        "kthvalue, per layer": peer(partial(peers.prune_by, peers.kthvalue_mask)),
        "torch.nn.utils.prune, per layer": peer(peers.torch_prune),
        "sparsedet, global": sparsedet(schedule=HALF, allocation=Global()),
        "torch.nn.utils.prune, global": peer(peers.torch_prune_global),
    },
    "2:4": {
        "sparsedet": sparsedet(schedule=OneShot(), pattern=NM()),
        "MSBench's rule": peer(partial(peers.prune_by, peers.argsort_mask)),
    },
    "2:4 both ways": {
        "sparsedet, best": sparsedet(schedule=OneShot(), pattern=NM2D(method="best")),
        "sparsedet, greedy": sparsedet(schedule=OneShot(), pattern=NM2D(method="greedy")),
    },
}
"""Pattern -> its ways, of which the first is the one that others are compared with."""


def measure(name: str, pattern: str, num_rounds: int) -> list[dict[str, object]]:
    """Time every way of making `pattern` on fresh copies of the network `name` of torchvision."""
    original = torchvision.models.get_model(name)
    ways = PATTERNS[pattern]

    def on_copy(way: str) -> Prepare:
        return lambda: ways[way](deepcopy(original))

    timings = Timings({way: on_copy(way) for way in ways}, num_rounds)
    base = next(iter(ways))
    return [
        {
            "network": name,
            "pattern": pattern,
            "way": way,
            "num_rounds": num_rounds,
            "cpu_s": timings.seconds(way),
            "wall_s": timings.seconds(way, "wall"),
            "cpu_ratio": timings.ratio(way, base),
        }
        for way in ways
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    set_up()
    results = [
        result
        for name in options.networks
        for pattern in options.patterns
        for result in measure(name, pattern, options.rounds)
    ]
    print_table(
        ["network", "pattern", "way", "CPU s", "/ first way"],
        [
            [
                result["network"],
                result["pattern"],
                result["way"],
                f"{result['cpu_s']:.3f}",
                f"{result['cpu_ratio']:.2f}",
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
