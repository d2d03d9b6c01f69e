"""Time of sharing seven levels of sparsity, 30 … 90 %, among the layers of a network."""

import argparse
from collections.abc import Sequence

import torchvision
from timing import Prepare, Timings, print_json, print_table, set_up
from torch import nn

from sparsedet.sparsity import ALLOCATIONS, Allocation, LevelWise, Sensitivity, Sparsifier, SparsityConfig

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROFILE = "profile pass"


def make(name: str, model: nn.Module) -> Allocation:
    """Make the allocation `name`; of `sensitivity` one with the same curve for every weight."""
    if name != "sensitivity":
        return ALLOCATIONS[name]()
    points = [{"target_sparsity": level, "measured_sparsity": level, "value": 1 - level} for level in LEVELS]
    curves = {key: points for key, _ in model.named_parameters()}
    return Sensitivity(curves={"fingerprint": "", "dense": 1.0, "curves": curves, "left_out": {}})


def measure(name: str, image_size: int, num_rounds: int) -> list[dict[str, object]]:
    """Time every allocation, and the forward pass that profiles the network `name` of torchvision for `energy`."""
    model = torchvision.models.get_model(name)
    configs = {
        allocation: SparsityConfig(
            schedule=LevelWise(levels=LEVELS),
            allocation=make(allocation, model),
            input_shape=(1, 3, image_size, image_size),
        )
        for allocation in ALLOCATIONS
    }

    def allocate(config: SparsityConfig) -> Prepare:
        sparsifier = Sparsifier(model, config)
        return lambda: sparsifier.allocate_levels

    variants = {allocation: allocate(config) for allocation, config in configs.items()}
    variants[PROFILE] = lambda: lambda: Sparsifier(model, configs["energy"])
    timings = Timings(variants, num_rounds)
    return [
        {
            "network": name,
            "allocation": variant,
            "num_rounds": num_rounds,
            "cpu_s": timings.seconds(variant),
            "wall_s": timings.seconds(variant, "wall"),
        }
        for variant in variants
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision")
    parser.add_argument("--image-size", type=int, default=224, help="side of the example input in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    set_up()
    results = [result for name in options.networks for result in measure(name, options.image_size, options.rounds)]
    print_table(
        ["network", "allocation", "CPU s, seven levels", "wall s"],
        [
            [result["network"], result["allocation"], f"{result['cpu_s']:.3f}", f"{result['wall_s']:.3f}"]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
