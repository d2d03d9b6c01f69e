"""Size of compact weight files against dense ones, and the time of writing and reading them."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torchvision
from timing import Timings, print_json, print_table, set_up
from torch import nn

from sparsedet.export.compact import load_compact, num_dense_bytes, save_compact
from sparsedet.sparsity import NM, OneShot, Sparsifier, SparsityConfig, Targets, Uniform

FORMS = {
    "fp32": {},
    "fp32, zstd": {"zstd": True},
    "fp16": {"fp16": True},
    "fp16, zstd": {"fp16": True, "zstd": True},
}
LEVELS = ("0", "0.5", "2:4", "0.8", "0.9")
CHOSEN = Targets(include=("type:Conv2d",))  # the classifier stays dense


def prune(model: nn.Module, level: str) -> None:
    """Zero weights by magnitude, the same share of each convolution."""
    if level == "2:4":
        config = SparsityConfig(schedule=OneShot(), pattern=NM(eligibility="divisible"), targets=CHOSEN)
    elif level == "0":
        return
    else:
        schedule = OneShot(sparsity=float(level))
        config = SparsityConfig(schedule=schedule, allocation=Uniform(), targets=CHOSEN, scope="chosen")
    Sparsifier(model, config).prune_(0)


def measure(name: str, level: str, num_rounds: int, folder: Path) -> dict[str, object]:
    """Write the network `name` of torchvision, random weights, pruned to `level`, in every form."""
    model = torchvision.models.get_model(name)
    prune(model, level)
    state = deepcopy(model.state_dict())
    result: dict[str, object] = {"network": name, "level": level, "size_bytes_dense": num_dense_bytes(state)}
    ways: dict[str, Callable[[], object]] = {}
    for form, options in FORMS.items():
        path = folder / f"{form}.safetensors"
        save_compact(path, state, **options)
        result[f"size_bytes, {form}"] = path.stat().st_size
        ways |= {
            f"write, {form}": lambda path=path, options=options: save_compact(path, state, **options),
            f"read, {form}": lambda path=path: load_compact(path),
        }
    timings = Timings({way: lambda run=run: run for way, run in ways.items()}, num_rounds)
    return result | {f"cpu_s, {way}": timings.seconds(way) for way in ways}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision")
    parser.add_argument("--levels", nargs="+", default=LEVELS, choices=LEVELS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    set_up()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(name, level, options.rounds, Path(folder)) for name in options.networks for level in options.levels
        ]
    print_table(
        ["network", "sparsity", "dense MB", *(f"{form} MB" for form in FORMS), "write s", "read s"],
        [
            [
                result["network"],
                result["level"],
                f"{result['size_bytes_dense'] / 1e6:.1f}",
                *(f"{result[f'size_bytes, {form}'] / 1e6:.1f}" for form in FORMS),
                *(
                    "–".join(
                        f"{function([result[f'cpu_s, {way}, {form}'].median for form in FORMS]):.2f}"
                        for function in (min, max)
                    )
                    for way in ("write", "read")
                ),
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
