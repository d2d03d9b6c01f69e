"""The tables of a run as reStructuredText, GitHub Markdown and CSV."""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from sparsedet.common.errors import escape, escape_lines
from sparsedet.report.run import Run
from sparsedet.report.tables import Table, detail_table, environments, notes, origin_table, published_tables

Escape = Callable[[str], str]


def to_rst(run: Run) -> str:
    """Return reStructuredText: grid tables in the published layout first, then the other tables and notes."""
    return _document(run, _escape_rst, lambda text, mark: f"{text}\n{mark * _width(text)}", ("=", "-"), _grid)


def to_md(run: Run) -> str:
    """Return the same tables as GitHub Markdown."""
    return _document(run, _escape_md, lambda text, mark: f"{mark} {text}", ("##", "###"), _pipes)


def to_csv(run: Run) -> str:
    """Return one line per record with all its fields, nested ones as `metrics.ap`; shares stay in [0, 1].

    Text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    rows = []
    for record in run.records:
        row: dict[str, object] = {}
        for key, value in record.model_dump(mode="json").items():
            row |= (
                {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
            )
        rows.append({_cell(key): _cell(value) for key, value in row.items()})
    stream = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """Return text so that no program takes it for a formula; numbers as they are."""
    if not isinstance(value, str):
        return value
    value = escape_lines(value)  # among it \r, a line end that csv does not quote
    return f"'{value}" if value.lstrip()[:1] in tuple("=+-@") else value


def _document(
    run: Run,
    escape: Escape,
    heading: Callable[[str, str], str],
    marks: tuple[str, str],
    draw: Callable[[Sequence[Sequence[str]]], str],
) -> str:
    blocks, section = [], None
    for table in (*published_tables(run), detail_table(run), origin_table(run)):
        if not table.rows:
            continue
        if table.section != section:
            blocks.append(heading(escape(table.section), marks[0]))
            section = table.section
        if table.title:
            blocks.append(heading(escape(table.title), marks[1]))
        blocks.append(draw(_escaped(table, escape)))
    blocks.append("\n".join(f"- {escape(note)}" for note in (*notes(run), *environments(run))))
    return "\n\n".join(blocks) + "\n"


def _escaped(table: Table, escape: Escape) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in (table.header, *table.rows)]


def _escape_rst(text: str) -> str:
    """Escape what would start inline markup, a reference, a list or a directive; `8*16` needs nothing."""
    text = escape(" ".join(text.split())).replace("\\", "\\\\")
    text = re.sub(r"(?<![^\W_])[*`|](?=\S)|`|_(?![^\W_])", r"\\\g<0>", text)
    return re.sub(r"^(?=[^\w\\…(+-]|[+-](?!\d+\.\d)|\(?\w+[.)]\s)", r"\\", text)


def _escape_md(text: str) -> str:
    return re.sub(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", escape(" ".join(text.split())))


def _width(text: str) -> int:
    """Columns that docutils counts: two for East Asian wide characters, none for combining ones."""
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
        if not unicodedata.combining(character)
    )


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]

    def border(mark: str) -> str:
        return "+" + "+".join(mark * (width + 2) for width in widths) + "+"

    lines = [border("-")]
    for index, row in enumerate(rows):
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        lines += ["| " + " | ".join(cells) + " |", border("-" if index else "=")]
    return "\n".join(lines)


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
