"""Loss, learning rate and AP over the steps of a training, from ``metrics.jsonl`` and the records."""

import json
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedet.report.plots import COLOURS, plain
from sparsedet.report.run import METRICS_FILE, Experiment


def training_curves(experiment: Experiment) -> Figure | None:
    """Loss with its terms, learning rate, and AP of each level (before, in and after its training) over the steps.

    Dotted lines are the beginnings of levels. A half written last line of a run that is still going is left out.

    Returns:
        The figure; None before there is a step to show.
    """
    lines = _read(experiment)
    rows = [line for line in lines if {"loss", "lr"} <= line.keys()]
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    loss, lr, ap = figure.subplots(3, sharex=True, height_ratios=(3, 1, 2))
    steps = [row["step"] for row in rows]
    marker = "." if len(rows) == 1 else ""  # a line of one point is not seen
    terms = [key for key in rows[0] if key.endswith("_loss")]
    for index, key in enumerate(terms if len(terms) > 1 else []):
        values = [row[key] for row in rows]
        color = COLOURS[1 + index % (len(COLOURS) - 1)]
        loss.plot(steps, values, color=color, linewidth=0.8, marker=marker, label=plain(key))
    loss.plot(steps, [row["loss"] for row in rows], color=COLOURS[0], linewidth=1.2, marker=marker, label="loss")
    loss.legend(frameon=False, fontsize=8)
    lr.plot(steps, [row["lr"] for row in rows], color=COLOURS[0], linewidth=1.2, marker=marker)
    _plot_ap(ap, experiment, lines)
    first_of_levels = [end for end in _ends(experiment) if 0 < end <= steps[-1]]
    for axes, label in ((loss, "loss"), (lr, "learning rate"), (ap, "AP (%)")):
        for step in first_of_levels:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_ylabel(label)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_title(plain(experiment.name), fontsize=10)
    ap.set_xlabel("step")
    return figure


def _plot_ap(axes: Axes, experiment: Experiment, lines: list[dict[str, Any]]) -> None:
    ends = _ends(experiment)
    pruned = [
        (end - record.steps, 100 * record.ap_after_pruning)
        for end, record in zip(ends, experiment.records, strict=True)
        if record.ap_after_pruning is not None and record.ap_after_pruning >= 0
    ]
    trained = [(end, 100 * record.ap) for end, record in zip(ends, experiment.records, strict=True) if record.ap >= 0]
    inside = [(line["step"] + 1, 100 * line["val_ap"]) for line in lines if line.get("val_ap", -1) >= 0]
    for points, marker, label in (
        (pruned, "v", "right after pruning"),
        (inside, ".", "inside the level"),
        (trained, "o", "at the end of the level"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[0], marker=marker, linestyle="none", label=label)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _ends(experiment: Experiment) -> list[int]:
    """Return the step behind the last of each finished level."""
    return list(accumulate(record.steps for record in experiment.records))


def _read(experiment: Experiment) -> list[dict[str, Any]]:
    path = experiment.folder / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
