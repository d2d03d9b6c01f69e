"""Commands about configuration files: show, translate."""

import json
import sys
from typing import TYPE_CHECKING

import typer

from sparsedet.cli.options import Config, Json, Overrides, overrides
from sparsedet.common.errors import escape

if TYPE_CHECKING:
    from sparsedet.benchmark.suite import Suite

app = typer.Typer(help="Show and translate configuration files.", no_args_is_help=True)


@app.command()
def show(file: Config, set_: Overrides = None, as_json: Json = False) -> None:
    """Print the resolved recipe of each experiment, with every default filled in."""
    _print(_load(file, set_), as_json)


@app.command()
def translate(file: Config, set_: Overrides = None, as_json: Json = False) -> None:
    """Print the native form of a file of United-Perception or MSBench; what became of each key goes to stderr."""
    suite = _load(file, set_)
    for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True):
        for note in loaded.notes:
            print(escape(f"{entry.name}: {note.key}: {note.outcome}: {note.text}"), file=sys.stderr)
    _print(suite, as_json)


def _load(file: str, set_: list[str] | None) -> "Suite":
    from sparsedet.benchmark.suite import load_suite
    from sparsedet.common.shipped import find_config

    return load_suite(find_config(file), overrides(set_))


def _print(suite: "Suite", as_json: bool) -> None:
    from sparsedet.benchmark.suite import resolved
    from sparsedet.common.config import to_yaml

    recipes = resolved(suite)
    content = recipes if len(recipes) > 1 else next(iter(recipes.values()))
    print(json.dumps(content) if as_json else to_yaml(content), end="")
