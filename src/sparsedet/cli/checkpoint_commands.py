"""Commands about checkpoint files: compact, restore, convert."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Force, Json

app = typer.Typer(help="Convert checkpoints.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@app.command()
def compact(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder, or a state dict of any program.")],
    output: Out,
    fp16: Annotated[bool, typer.Option("--fp16", help="Round weights to half precision.")] = False,
    zstd: Annotated[bool, typer.Option("--zstd", help="Compress (needs the extra zstd).")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the weights as a compact safetensors file: for each sparse tensor a bitmask and what is not zero."""
    from sparsedet.benchmark.convert import compact as write

    sizes = write(checkpoint, output, fp16, zstd, force)
    if as_json:
        print(json.dumps(sizes))
        return
    dense, sparse = sizes["size_bytes_dense"], sizes["size_bytes_sparse"]
    print(
        f"written: {output}: {sparse / 1e6:.3f} MB; the weights are {dense / 1e6:.3f} MB, "
        f"{dense / sparse:.2f} times as much"
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="Compact file, or a checkpoint.")], output: Out, force: Force = False
) -> None:
    """Write the dense weights alone: plain safetensors for a name ending so, otherwise a state dict of torch.save."""
    from sparsedet.benchmark.convert import restore as write

    write(file, output, force)
    print(f"written: {output}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    sparse_prefix: Annotated[
        bool, typer.Option("--sparse-prefix", help="Write the key names of its sparse runs, which have a prefix.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the weights of a checkpoint with United-Perception's key names."""
    from sparsedet.benchmark.upstream.convert import convert_checkpoint

    convert_checkpoint(checkpoint, out, sparse_prefix, force)
    print(f"written: {out}")
