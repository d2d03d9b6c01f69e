"""Tables on stdout, warnings on stderr."""

import sys
from typing import Any

from sparsedet.common.errors import escape, escape_lines


def warn(text: str) -> None:
    """Print a warning."""
    print(escape_lines(f"warning: {text}"), file=sys.stderr)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print `rows`, which have the same keys, under their keys."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(
            key.replace("_", " "),
            justify="left" if isinstance(rows[0][key], str) else "right",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(escape(_cell(value))) for value in row.values()))  # a plain string would be markup
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(highlight=False, width=220).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "-" if value is None else str(value)
