"""Commands that write files for other programs: export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Force, Json, Overrides, overrides


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(export)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, ending in .onnx.")],
    post_processing: Annotated[
        bool, typer.Option("--post-processing", help="End with boxes, scores and labels instead of raw outputs.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store and compute in float16.")] = False,
    slim: Annotated[bool, typer.Option("--slim/--no-slim", help="Let onnxslim remove what is not needed.")] = True,
    keep_batch_norm: Annotated[
        bool, typer.Option("--keep-batch-norm", help="Do not fold batch norms into convolutions.")
    ] = False,
    input_shape: Annotated[
        str | None,
        typer.Option("--input-shape", metavar="B,3,H,W", help="Count MACs on such a batch; the file takes any size."),
    ] = None,
    force: Force = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Write the detector of a checkpoint as ONNX and a JSON file beside it; exit code 1 where a check fails."""
    from sparsedet.benchmark.onnx_export import OnnxOptions, export_checkpoint, parse_shape

    shape = None if input_shape is None else parse_shape(input_shape)
    options = OnnxOptions(post_processing, fp16, slim, keep_batch_norm, shape)
    result = export_checkpoint(checkpoint, output, options, overrides(set_), force)
    if as_json:
        print(json.dumps(result.about))
    else:
        for line in result.summary:
            print(line)
    if result.faults:
        raise typer.Exit(1)
