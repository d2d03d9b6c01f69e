"""Commands about checkpoint files: convert."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert checkpoints.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``convert`` a subcommand while it is the only one."""


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    sparse_prefix: Annotated[
        bool, typer.Option("--sparse-prefix", help="Write the key names of its sparse runs, which have a prefix.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the weights of a checkpoint with United-Perception's key names."""
    from sparsedet.benchmark.upstream.convert import convert_checkpoint

    convert_checkpoint(checkpoint, out, sparse_prefix, force)
    print(f"written: {out}")
