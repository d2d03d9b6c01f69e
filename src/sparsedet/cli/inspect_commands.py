"""Commands that look at a recipe or a checkpoint: analyze, verify."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Config, Json, Overrides, overrides
from sparsedet.cli.printing import print_table


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(analyze)
    app.command()(verify)


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
        print(f"warning: {warning}", file=sys.stderr)
    rows = analysis.rows
    if as_json:
        print(json.dumps(rows))
    elif as_csv:
        print(to_csv(rows), end="")
    else:
        print_table(rows)


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")], as_json: Json = False
) -> None:
    """Count the zeros of a checkpoint and check its masks and N:M groups; exit code 1 where they are not there."""
    from sparsedet.benchmark.verify import verify_checkpoint

    result = verify_checkpoint(checkpoint)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        print_table(result.layers)
        for line in result.summary:
            print(line)
    if result.faults:
        raise typer.Exit(1)
