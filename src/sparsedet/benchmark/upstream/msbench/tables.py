"""MSBench's tables of how sparse each layer is at each level: two text files in one folder.

``dict_prun_table.txt`` holds ``{layer: [share of zeros, ...]}``, and ``desrie_prun_table.txt`` (their spelling) on its
fifth line the column of each level (msbench_semantics §6.6). Both are read as literals, never evaluated.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsedet.benchmark.upstream.sparsity_block import WRAPPER
from sparsedet.common.errors import ConfigError, did_you_mean
from sparsedet.common.files import write_text
from sparsedet.sparsity import Selected
from sparsedet.sparsity.allocation.rounding import rounded_up
from sparsedet.sparsity.allocation.selection import max_zeros

RATIOS_FILE = "dict_prun_table.txt"
LEVELS_FILE = "desrie_prun_table.txt"
MAX_BYTES = 4_000_000
MAX_RATIO = 0.99
CAPTION = "written by sparsedet; columns, and the share of zeros in all conv and linear weights in each"
LEVEL_CAPTION = "of each level its column, its share of zeros in all conv and linear weights, and the one asked for"

Table = list[dict[str, float]]
"""For each level: parameter name -> share of zeros, of every weight that is pruned."""


def layer_name(name: str) -> str:
    """Return the name of the layer whose weight has that name, as it stands in a table."""
    return name.removesuffix(".weight")


def has_tables(folder: Path) -> bool:
    """Tell whether both files are there."""
    return (folder / RATIOS_FILE).is_file() and (folder / LEVELS_FILE).is_file()


def write_tables(folder: Path, table: Table, selection: Sequence[Selected], targets: Sequence[float]) -> None:
    """Write both files, in the form in which MSBench reads them.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_text(folder / RATIOS_FILE, repr(matrix(table, selection)) + "\n")
    columns, totals = list(range(len(table))), [_total(level, selection) for level in table]
    lines = (CAPTION, columns, totals, LEVEL_CAPTION, columns, totals, list(targets))
    write_text(folder / LEVELS_FILE, "".join(f"{line}\n" for line in lines))


def matrix(table: Table, selection: Sequence[Selected]) -> dict[str, list[float]]:
    """Return ``{layer: [share of zeros at each level]}``, 0 where a layer is left out."""
    return {layer_name(row.name): [level.get(row.name, 0.0) for level in table] for row in selection}


def read_tables(folder: Path, selection: Sequence[Selected], num_levels: int) -> Table:
    """Read the table of a model.

    Names may stand behind the ``module.`` of a DDP wrapper. Weights that MSBench does not prune (all but those of 2-d
    convolutions and linear layers) may lack, and stay dense.

    Args:
        folder: of both files.
        selection: the weights of the model.
        num_levels: number of levels of the run.

    Returns:
        The shares of whole numbers of weights, rounded up as MSBench does.

    Raises:
        ConfigError: a file is no such table, or one of another model, of other levels, or of levels that do not rise.
    """
    path, levels_path = folder / RATIOS_FILE, folder / LEVELS_FILE
    ratios = _ratios(path)
    lines = _read(levels_path).splitlines()
    if len(lines) < 7:
        raise _error(levels_path, "seven lines", f"{len(lines)}")
    columns = _literal(levels_path, lines[4])
    num_columns = len(next(iter(ratios.values())))
    if not (isinstance(columns, list) and all(type(column) is int and 0 <= column < num_columns for column in columns)):
        raise _error(levels_path, f"a list of columns below {num_columns} on line 5", lines[4])
    if len(columns) != num_levels:
        raise _error(levels_path, f"a column for each of the {num_levels} levels of sparsity_table", f"{len(columns)}")
    ratios = _own_names(path, ratios, selection)
    _check_rising(path, ratios, columns)
    sizes = {row.name: row.numel for row in selection}
    table = [{name: _rounded_up(row[column], sizes[name]) for name, row in ratios.items()} for column in columns]
    if lines[0] == CAPTION:
        _check_totals(levels_path, table, selection, _literal(levels_path, lines[5]))
    return table


# --- parts -------------------------------------------------------------------------------------------------


def _ratios(path: Path) -> dict[str, list[float]]:
    ratios = _literal(path, _read(path))
    if not isinstance(ratios, dict) or not ratios:
        raise _error(path, "a dict of layers", type(ratios).__name__)
    lengths = set()
    for layer, row in ratios.items():
        is_row = isinstance(layer, str) and isinstance(row, list) and row
        if not is_row or not all(type(ratio) in (int, float) and 0 <= ratio <= MAX_RATIO for ratio in row):
            raise _error(path, f"for each layer a list of shares in [0, {MAX_RATIO}]", f"{layer!r}: {row!r}"[:80])
        lengths.add(len(row))
    if len(lengths) > 1:
        raise _error(path, "as many shares for each layer", f"{min(lengths)} and {max(lengths)}")
    return ratios


def _own_names(path: Path, ratios: Mapping[str, list[float]], selection: Sequence[Selected]) -> dict[str, list[float]]:
    """Return the rows of the chosen weights by parameter name."""
    rows = {layer_name(row.name): row for row in selection}
    found = {}
    for layer, shares in ratios.items():
        own = layer if layer in rows else layer.removeprefix(WRAPPER)
        if own not in rows:
            hint = did_you_mean(own, rows)
            raise _error(path, "layers of the model", f"'{layer}', which is none of its {len(rows)}.{hint}")
        row = rows[own]
        if row.chosen:
            found[row.name] = shares
        elif any(shares):
            raise _error(path, f"no zeros in '{layer}', which is left out ({row.reason})", f"{max(shares)}")
    for row in selection:
        if row.chosen and row.name not in found:
            if row.module_type in ("Conv2d", "Linear") and row.name.endswith(".weight"):
                raise _error(path, "every conv and linear layer of the model", f"none named '{layer_name(row.name)}'")
            found[row.name] = [0.0] * len(next(iter(ratios.values())))
    return found


def _check_rising(path: Path, ratios: Mapping[str, list[float]], columns: Sequence[int]) -> None:
    for name, row in ratios.items():
        shares = [row[column] for column in columns]
        if shares != sorted(shares):
            raise _error(path, f"shares of '{layer_name(name)}' that do not fall from level to level", f"{shares}")


def _rounded_up(ratio: float, size: int) -> float:
    return min(rounded_up(ratio, size), max_zeros(size)) / size


def _check_totals(path: Path, table: Table, selection: Sequence[Selected], written: Any) -> None:
    """A file of ours says what its table comes to, which tells a model of the same names but other shapes."""
    totals = [_total(level, selection) for level in table]
    is_same = isinstance(written, list) and len(written) == len(totals)
    if not is_same or not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(written, totals, strict=True)):
        raise _error(path, f"a table of layers of these shapes, which come to {totals}", f"{written}")


def _total(level: Mapping[str, float], selection: Sequence[Selected]) -> float:
    return sum(level.get(row.name, 0.0) * row.numel for row in selection) / sum(row.numel for row in selection)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _error(path, "a readable file", f"'{error.strerror}'") from error
    if len(content) > MAX_BYTES:
        raise _error(path, f"at most {MAX_BYTES} bytes", "more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _error(path, "UTF-8 text", "other bytes") from error


def _literal(path: Path, text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _error(
            path, "plain numbers, lists and names", f"'{text.strip()[:40]}' ({type(error).__name__})"
        ) from error


def _error(path: Path, expected: str, got: str) -> ConfigError:
    return ConfigError(
        f"{path}: expected {expected}, got {got}. Set do_sparse_analysis: true to make the tables of this model anew."
    )
