"""Plots of what is in a data set: categories, image sizes, boxes per image, box sizes, shapes and places."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sparsedet.report.plots import COLOURS

MAX_CATEGORIES = 30
NUM_BINS = 40

Values = Mapping[str, Sequence[float]]


def data_figure(splits: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw six plots of one or several splits.

    Args:
        splits: for each name ``boxes_per_category`` (number by name) and ``values`` (all values of each measure, as
            ``sparsedet data stats --json`` names them).
        title: heading.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 3)
    values = {name: split["values"] for name, split in splits.items()}
    _categories(axes[0, 0], {name: split["boxes_per_category"] for name, split in splits.items()})
    _histogram(axes[0, 1], values, "boxes_per_image", "boxes per image", _linear_bins)
    _histogram(axes[0, 2], values, "box_side_px", "square root of the box area (px)", _log_bins)
    for limit in (32, 96):  # COCO's limits of small, medium and large
        axes[0, 2].axvline(limit, color="gray", linestyle=":", linewidth=1)
    _histogram(axes[1, 0], values, "box_aspect_ratio", "width / height of boxes", _log_bins)
    _image_sizes(axes[1, 1], values)
    _centers(axes[1, 2], values)
    figure.suptitle(title.replace("$", r"\$"))
    return figure


def _categories(axes: Axes, counts: Mapping[str, Mapping[str, int]]) -> None:
    totals: dict[str, int] = {}
    for split in counts.values():
        for name, count in split.items():
            totals[name] = totals.get(name, 0) + count
    shown = sorted(totals, key=lambda name: -totals[name])[:MAX_CATEGORIES]
    height = 0.8 / len(counts)
    for index, (split_name, split) in enumerate(counts.items()):
        places = [row + (index - (len(counts) - 1) / 2) * height for row in range(len(shown))]
        axes.barh(places, [split.get(name, 0) for name in shown], height, color=COLOURS[index], label=split_name)
    axes.set_yticks(range(len(shown)), [name.replace("$", r"\$") for name in shown])
    axes.invert_yaxis()
    hidden = len(totals) - len(shown)
    axes.set_xlabel("boxes" + (f" ({hidden} rarer categories not shown)" if hidden else ""))
    axes.legend(loc="lower right")


def _histogram(
    axes: Axes, splits: Mapping[str, Values], key: str, label: str, make_bins: Callable[[list[float]], list[float]]
) -> None:
    everything = [value for values in splits.values() for value in values[key]]
    axes.set_xlabel(label)
    axes.set_ylabel("share of all in the split (%)")
    if not everything:
        return
    bins = make_bins(everything)
    for index, (name, values) in enumerate(splits.items()):
        if values[key]:
            weights = np.full(len(values[key]), 100 / len(values[key]))
            axes.hist(
                values[key], bins, weights=weights, histtype="step", color=COLOURS[index], label=name, linewidth=1.5
            )
    if make_bins is _log_bins:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()


def _linear_bins(values: list[float]) -> list[float]:
    """Return edges around whole numbers."""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / NUM_BINS))
    num_bins = math.ceil((high - low + 1) / width)
    return [low - 0.5 + width * number for number in range(num_bins + 1)]


def _log_bins(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    if high <= low * 1.01:
        low, high = low / 1.1, high * 1.1
    edges: list[float] = np.geomspace(low, high * 1.0001, NUM_BINS + 1).tolist()
    return edges


def _image_sizes(axes: Axes, splits: Mapping[str, Values]) -> None:
    for index, (name, values) in enumerate(splits.items()):
        sizes, counts = np.unique(
            np.stack([values["image_width_px"], values["image_height_px"]]), axis=1, return_counts=True
        )
        areas = 20 + 200 * counts / counts.sum()
        axes.scatter(sizes[0], sizes[1], areas, color=COLOURS[index], alpha=0.5)
        axes.scatter([], [], 40, color=COLOURS[index], label=name)  # in the legend all are of one size
    axes.margins(0.1)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("image width (px)")
    axes.set_ylabel("image height (px)")
    axes.legend()


def _centers(axes: Axes, splits: Mapping[str, Values]) -> None:
    """Where in the image the boxes are; whatever looks like a line here is a fault in the data."""
    x = [value for values in splits.values() for value in values["box_center_x"]]
    y = [value for values in splits.values() for value in values["box_center_y"]]
    counts, _, _ = np.histogram2d(y, x, bins=32, range=((0, 1), (0, 1)))
    picture = axes.imshow(counts, extent=(0, 1, 1, 0), cmap="viridis", aspect="auto")
    axes.figure.colorbar(picture, ax=axes, label="boxes, all splits")
    axes.set_xlabel("centre of boxes, share of the image's width")
    axes.set_ylabel("share of the height")
