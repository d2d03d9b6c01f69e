"""Search for a channel order in which 2:4 keeps more: quality and time, against NVIDIA's search on a CPU.

The seconds of NVIDIA's search (apex, numpy path) and what it kept were measured once and are read from the file of
expected values that the tests read too, so that the ratios are between machines, though of the same kind of core.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from timing import print_json, print_table, set_up
from torch import Tensor

from sparsedet.sparsity import NM, permute_channels
from sparsedet.sparsity.permutation import kept_magnitude, search_permutation

EXPECTED = Path(__file__).parents[1] / "tests" / "sparsity" / "golden" / "permutation.json"
LARGE = ((256, 256, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1), (512, 2048, 1, 1))


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what `call` returns, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def weight_of(shape: Sequence[int], seed: int, by_channel: bool) -> Tensor:
    """Return magnitudes, normal; `by_channel` with input channels of different sizes."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    if by_channel:
        weight *= np.exp(generator.standard_normal(shape[1])).astype(np.float32)
    return torch.from_numpy(weight).abs()


def search(name: str, magnitudes: Tensor) -> dict[str, Any]:
    """Time one search over magnitudes (rows, channels)."""
    permutation, cpu, wall = timed(lambda: search_permutation(magnitudes, 2, 4))
    total = float(magnitudes.sum(dtype=torch.float64))
    return {
        "case": name,
        "cpu_s": cpu,
        "wall_s": wall,
        "share_before": kept_magnitude(magnitudes, 2, 4) / total,
        "share_after": kept_magnitude(magnitudes[:, permutation], 2, 4) / total,
    }


def against_asp() -> list[dict[str, Any]]:
    """Search in the weights that NVIDIA's search was measured on."""
    search_permutation(torch.rand(8, 16), 2, 4)  # warm up
    results = []
    for case in json.loads(EXPECTED.read_text())["cases"]:
        magnitudes = weight_of(case["shape"], case["seed"], case["kind"] == "chan")
        result = search(f"{case['shape'][0]}x{case['shape'][1]} {case['kind']}, {case['strategy']}", magnitudes)
        result |= {
            "share_asp": case["kept_permuted"] / case["abs_sum"],
            "cpu_ratio": case["cpu_s"] / result["cpu_s"],
            "wall_ratio": case["wall_s"] / result["wall_s"],
        }
        results.append(result)
    return results


def large() -> list[dict[str, Any]]:
    """Search in random weights of the size of convolutions."""
    results = []
    for out, channels, *kernel in LARGE:
        magnitudes = weight_of((out * int(np.prod(kernel)), channels), 0, False)
        results.append(search(f"{out}x{channels}x{kernel[0]}x{kernel[1]} normal", magnitudes))
    return results


def network(name: str) -> dict[str, Any]:
    """Permute a whole network of torchvision with random weights."""
    model = torchvision.models.get_model(name)
    report, cpu, wall = timed(lambda: permute_channels(model, (torch.rand(1, 3, 64, 64),), NM()))
    parameters = dict(model.named_parameters())
    names = {name for group in report.groups for name in group.weights}
    total = float(sum(parameters[name].detach().abs().sum(dtype=torch.float64) for name in names))
    gain = sum(group.kept_after - group.kept_before for group in report.groups)
    after = sum(kept_magnitude(parameters[name].detach().abs().movedim(1, -1).flatten(0, -2), 2, 4) for name in names)
    return {
        "case": f"{name}, random weights, {len(report.groups)} groups",
        "cpu_s": cpu,
        "wall_s": wall,
        "share_before": (after - gain) / total,
        "share_after": after / total,
        "max_output_difference": report.max_output_difference,
        "max_output": report.max_output,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["resnet18", "resnet50"], help="names of torchvision")
    parser.add_argument("--only-small", action="store_true", help="leave out the large convolutions")
    options = parser.parse_args(arguments)
    set_up()
    results = [*against_asp(), *([] if options.only_small else large()), *map(network, options.networks)]
    print_table(
        ["case", "CPU s", "kept before", "kept", "kept by ASP", "ASP's CPU s /", "ASP's wall s /"],
        [
            [
                result["case"],
                f"{result['cpu_s']:.3f}",
                *(
                    f"{result[key]:.4f}" if key in result else ""
                    for key in ("share_before", "share_after", "share_asp")
                ),
                *(f"{result[key]:.0f}" if key in result else "" for key in ("cpu_ratio", "wall_ratio")),
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
