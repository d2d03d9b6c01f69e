"""Plots: AP against sparsity, AP against MACs kept, sparsity per layer and level, loss per layer pruned alone.

Drawn on matplotlib's Figure objects, without pyplot and its global state. Axes are in percent.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedet.report.record import Record
from sparsedet.report.run import LAYERS_FILE, Experiment, Run, read_saved
from sparsedet.report.tables import level_name, sparsity_name

# Okabe and Ito's colours without the yellow: told apart by colour-blind readers and on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">")
DASHES = ("--", ":", "-.")
DPI = 150


def ap_against_sparsity(run: Run) -> Figure:
    """AP over measured sparsity (all conv/linear weights): a curve per experiment, a line per dense one."""
    return _ap_figure(run, "sparsity, zeros in all conv/linear weights (%)", lambda record: record.measured_sparsity)


def ap_against_macs(run: Run) -> Figure:
    """AP over the share of the dense MACs that is kept: a curve per experiment, a line per dense one."""
    return _ap_figure(run, "MACs kept (% of dense)", lambda record: record.macs_kept)


def layer_sparsity(experiment: Experiment) -> Figure | None:
    """Heat map of the share of zeros, layer by level, from the `layers.json` files.

    Returns:
        The figure; None for a dense experiment and before there is a level to show.

    Raises:
        ConfigError: a `layers.json` is damaged.
    """
    columns: dict[str, dict[str, float]] = {}
    for record in () if experiment.is_dense else experiment.records:
        path = experiment.folder / record.folder / LAYERS_FILE
        if path.exists():
            columns[level_name(record)] = read_saved(path, _layer_sparsities)
    if not any(columns.values()):
        return None
    values = {level: {name: 100 * share for name, share in column.items()} for level, column in columns.items()}
    return _heat_map(values, plain(experiment.name), "level", "zeros in the layer (%)", 100, "{:.0f}")


def layer_losses(curves: Mapping[str, Sequence[tuple[float, float]]], dense: float, title: str) -> Figure:
    """Heat map of how far a metric falls with one layer pruned alone, layer by sparsity; times 100.

    Args:
        curves: pairs of sparsity and metric for each layer.
        dense: the metric of the model as it is.
        title: heading.
    """
    sparsities = sorted({sparsity for points in curves.values() for sparsity, _ in points})
    columns = {
        sparsity_name(sparsity): {
            name: 100 * (dense - value) for name, points in curves.items() for at, value in points if at == sparsity
        }
        for sparsity in sparsities
    }
    largest = max((loss for column in columns.values() for loss in column.values()), default=0.0)
    return _heat_map(columns, plain(title), "sparsity of the layer alone", "loss (points)", max(largest, 1.0), "{:.1f}")


def _heat_map(
    columns: Mapping[str, Mapping[str, float]], title: str, xlabel: str, label: str, largest: float, spec: str
) -> Figure:
    """Draw one coloured cell with its number for each column and layer; what is missing is left blank."""
    layers = list(dict.fromkeys(name for column in columns.values() for name in column))
    figure = Figure(figsize=(3.6 + 0.55 * len(columns), 1.2 + 0.19 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    values = [[column.get(layer, float("nan")) for column in columns.values()] for layer in layers]
    mesh = axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=largest, edgecolors="white", linewidth=0.5)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if value > 0.6 * largest else "black"
            text = "" if value != value else spec.format(value)
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks([column + 0.5 for column in range(len(columns))], list(columns))
    axes.set_yticks([row + 0.5 for row in range(len(layers))], [plain(layer) for layer in layers], fontsize=7)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    axes.set_title(title, fontsize=10)
    figure.colorbar(mesh, ax=axes, label=label, aspect=30, shrink=min(1.0, 20 / len(layers)))
    return figure


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG."""
    return _save(figure, format="png", dpi=DPI, metadata={"Software": None})


def to_svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "sparsedet"}):
        return _save(figure, format="svg", metadata={"Date": None})


def _save(figure: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, **options)
    return stream.getvalue()


def _ap_figure(run: Run, label: str, value: Callable[[Record], float]) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    sparse = [experiment for experiment in run.experiments if experiment.records and not experiment.is_dense]
    for index, experiment in enumerate(sparse):
        records = [record for record in experiment.records if record.ap >= 0]
        axes.plot(
            [100 * value(record) for record in records],
            [100 * record.ap for record in records],
            color=COLOURS[index % len(COLOURS)],
            marker="*" if experiment.records[0].is_n_m else MARKERS[index % len(MARKERS)],
            markersize=11 if experiment.records[0].is_n_m else 5,
            linestyle="none" if experiment.records[0].is_n_m else "-",
            label=plain(experiment.name),
        )
    _dense_lines(run, axes)
    axes.set_xlabel(label)
    axes.set_ylabel("AP (%)")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _dense_lines(run: Run, axes: Axes) -> None:
    dense = [experiment for experiment in run.experiments if experiment.records and experiment.is_dense]
    for index, experiment in enumerate(dense):
        ap = experiment.records[-1].ap
        if ap >= 0:
            axes.axhline(
                100 * ap,
                color="0.35",
                linewidth=1.2,
                linestyle=DASHES[index % len(DASHES)],
                label=f"{plain(experiment.name)} ({100 * ap:.1f})",
            )


def _layer_sparsities(rows: Any) -> dict[str, float]:
    return {str(row["name"]): float(row["sparsity"]) for row in rows}


def plain(text: str) -> str:
    """Return `text` as matplotlib can draw it: dollar signs are no mathematics, half a surrogate pair is a "?"."""
    return text.encode(errors="replace").decode().replace("$", r"\$")
