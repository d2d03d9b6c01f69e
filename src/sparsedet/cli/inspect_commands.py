"""Commands that look at a recipe or a file of weights: analyze, verify, tensorrt, sensitivity."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Config, Device, Json, Output, Overrides, overrides
from sparsedet.cli.printing import print_table, warn
from sparsedet.common.errors import escape

WeightsFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Checkpoint, safetensors (compact or dense), state dict or ONNX file.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (analyze, verify, tensorrt, sensitivity):
        app.command()(command)


def analyze(
    file: Config,
    set_: Overrides = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV on stdout.")] = False,
) -> None:
    """Show for each weight: shape, MACs, stride group, in or out and why, allocated sparsity of each level."""
    from sparsedet.benchmark.analysis import analyze_file, to_csv
    from sparsedet.common.shipped import find_config

    analysis = analyze_file(find_config(file), overrides(set_))
    for warning in analysis.warnings:
        warn(warning)
    rows = analysis.rows
    if as_json:
        print(json.dumps(rows))
    elif as_csv:
        print(to_csv(rows), end="")
    else:
        print_table(rows)


def verify(
    file: WeightsFile,
    against: Annotated[Path | None, typer.Option(help="Checkpoint whose masks the weights must have.")] = None,
    as_json: Json = False,
) -> None:
    """Count zeros, N:M violations and dead channels, and check masks; exit code 1 where zeros are missing."""
    from sparsedet.benchmark.verify import verify_file

    result = verify_file(file, against)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        print_table(result.layers)
        for line in result.summary:
            print(escape(line))
    if result.faults:
        raise typer.Exit(1)


def tensorrt(
    file: WeightsFile,
    log: Annotated[Path | None, typer.Option(help="What trtexec printed: which layers it found and picked.")] = None,
    as_json: Json = False,
) -> None:
    """Say which layers TensorRT's 2:4 kernels can serve, which are large enough to profit, and how to build it."""
    from sparsedet.benchmark.verify import assess_file, engine_command
    from sparsedet.export.tensorrt import CLAIM, read_build_log

    layers = assess_file(file)
    build = None if log is None else read_build_log(log)
    command = engine_command(file)
    if as_json:
        rows = [dataclasses.asdict(layer) for layer in layers]
        built = None if build is None else dataclasses.asdict(build)
        print(json.dumps({"layers": rows, "command": command, "log": built}))
        return
    print_table([{**dataclasses.asdict(layer), "kernel": list(layer.kernel) or None} for layer in layers])
    for state, meaning in (("large", "valid 2:4 and large"), ("valid", "valid 2:4, not large"), ("no", "not 2:4")):
        print(f"{meaning}: {sum(layer.state == state for layer in layers)} of {len(layers)} layers")
    if build is not None:
        print(f"TensorRT found {len(build.eligible)} layers eligible, and runs a sparse kernel in {len(build.picked)}:")
        print("  " + ("; ".join(build.picked) or "none"))
    print(f"no speed is claimed; {CLAIM}")
    if file.suffix != ".onnx":
        print("the command is for its export; for the sizes of the inputs give that file to sparsedet tensorrt:")
    print(command)


def sensitivity(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")],
    output: Output = None,
    sparsities: Annotated[str, typer.Option(help="Sparsities of each layer.")] = "0.5,0.7,0.8,0.9,0.95",
    images: Annotated[int | None, typer.Option(min=1, help="Evaluate on so many images only, evenly spread.")] = None,
    device: Device = "auto",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Measure AP with each layer pruned alone; the curves are for allocation: {type: sensitivity, curves: FILE}.

    Layers are pruned by the checkpoint's sparsity.criterion, magnitude where it has none.
    """
    from sparsedet.benchmark.console import Console
    from sparsedet.benchmark.sensitivity import measure_ap
    from sparsedet.common.config import dump
    from sparsedet.common.errors import ConfigError

    try:
        asked = [float(text) for text in sparsities.split(",")]
    except ValueError:
        raise ConfigError(
            f"--sparsities: expected numbers such as 0.5,0.8,0.9, got '{sparsities}'. Correct it."
        ) from None
    folder = output or checkpoint.parent / "sensitivity"
    curves, files = measure_ap(checkpoint, folder, asked, images, overrides(set_), device, Console())
    if as_json:
        print(json.dumps(dump(curves)))
    else:
        rows = [
            {"name": name, **{f"ap_{point.target_sparsity:g}": point.value for point in points}}
            for name, points in curves.curves.items()
        ]
        print_table(rows)
        print(f"ap of the detector as it is: {curves.dense:.4f}")
    print("written: " + ", ".join(map(str, files)), file=sys.stderr)
