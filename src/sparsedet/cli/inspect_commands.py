"""Commands that look at a recipe or a checkpoint: analyze, verify."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsedet.cli.options import Config, Json, Overrides, overrides


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

    rows = analyze_file(find_config(file), overrides(set_))
    if as_json:
        print(json.dumps(rows))
    elif as_csv:
        print(to_csv(rows), end="")
    else:
        _print_table(rows)


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder.")], as_json: Json = False
) -> None:
    """Count the zeros of a checkpoint and check its masks and N:M groups; exit code 1 where they are not there."""
    from sparsedet.benchmark.verify import verify_checkpoint

    result = verify_checkpoint(checkpoint)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        _print_table(result.layers)
        for line in result.summary:
            print(line)
    if result.faults:
        raise typer.Exit(1)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(
            key.replace("_", " "),
            justify="left" if isinstance(rows[0][key], str) else "right",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(highlight=False, width=220).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "-" if value is None else str(value)
