"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key, for example training.steps=100; in a suite, NAME:key=value changes one experiment.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print the plan: steps, levels, batches, learning rates, disk.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Print the plan with hours, after ten steps of each kind on the device.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of weights, data order and augmentation.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Config = Annotated[str, typer.Argument(metavar="FILE", help="A recipe or suite, or the name of a shipped one.")]


def overrides(values: list[str] | None, seed: int | None = None) -> tuple[str, ...]:
    """Return ``--set`` and ``--seed`` as overrides, in that order."""
    return (*(values or ()), *((f"seed={seed}",) if seed is not None else ()))
