"""Tables about single weights: what would be pruned where and why, and what was."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.benchmark.checkpoint import CHECKPOINT_FILE, build_detector, open_checkpoint
from sparsedet.benchmark.recipe import Recipe, load_recipe
from sparsedet.common.errors import ConfigError
from sparsedet.common.files import write_json, write_text
from sparsedet.detection.data.loader import val_loader
from sparsedet.detection.data.splits import Splits, open_splits
from sparsedet.sparsity import Measurement, Sparsifier

Row = dict[str, Any]


def table(sparsifier: Sparsifier) -> list[Row]:
    """Return one row for each conv/linear weight: shape, MACs, stride group, in or out and why, sparsity per level.

    Of a model that is pruned already, the measured sparsity and the levels still to come.

    Raises:
        UnreachableTargetError: a level cannot be reached.
    """
    first = 0 if sparsifier.level is None else sparsifier.level + 1
    targets = sparsifier.target_sparsities[first:]
    levels = sparsifier.allocate_levels(range(first, first + len(targets)))
    measured = {layer.name: layer.sparsity for layer in sparsifier.measure().layers}
    profile = sparsifier.profile
    rows: list[Row] = []
    for selected in sparsifier.selection:
        row: Row = {
            "name": selected.name,
            "type": selected.module_type,
            "shape": list(selected.shape),
            "num_weights": selected.numel,
        }
        if profile is not None:
            row |= {
                "num_macs": profile.num_macs[selected.name],
                "stride_group": profile.stride_groups[selected.name],
            }
        row |= {"chosen": selected.chosen, "reason": selected.reason}
        if sparsifier.level is not None:
            row["measured_sparsity"] = measured[selected.name]
        for target, allocated in zip(targets, levels, strict=True):
            row[f"allocated_{target:g}"] = allocated.get(selected.name, 0.0)
        rows.append(row)
    return rows


def write(folder: Path, rows: list[Row]) -> None:
    """Write `rows` as ``layers.json`` and ``layers.csv`` into `folder`."""
    write_json(folder / "layers.json", rows)
    write_text(folder / "layers.csv", to_csv(rows))


def to_csv(rows: list[Row]) -> str:
    """Return `rows` as CSV with a header line."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: "x".join(map(str, value)) if isinstance(value, list) else value for key, value in row.items()}
        )
    return stream.getvalue()


def layer_rows(measurement: Measurement) -> list[Row]:
    """Return one row for each conv/linear weight of a measured model."""
    return [{**asdict(layer), "shape": list(layer.shape)} for layer in measurement.layers]


def example_inputs(recipe: Recipe, splits: Splits, stride: int, device: torch.device) -> tuple[Tensor]:
    """Return the input on which MACs are counted: of the shape the recipe gives, or of a real image."""
    shape = recipe.sparsity.input_shape if recipe.sparsity is not None else None
    if shape is None:
        shape = tuple(next(val_loader(splits.val, 1, stride)).images.shape)
    return (torch.zeros(shape, device=device),)


def analyze_file(path: Path, overrides: tuple[str, ...] = ()) -> list[Row]:
    """Return the table of a recipe (with its start weights) or of a checkpoint.

    Raises:
        ConfigError: the recipe prunes nothing.
        SparseDetError: the file or its data cannot be read, or the sparsity cannot be had.
    """
    masks = None
    if path.suffix == Path(CHECKPOINT_FILE).suffix:
        saved = open_checkpoint(path, overrides)
        recipe, model, masks = saved.recipe, saved.model, {"level": saved.level, "masks": saved.masks}
        splits = open_splits(recipe.data, recipe.seed)
    else:
        recipe = load_recipe(path, overrides).recipe
        splits = open_splits(recipe.data, recipe.seed)
        model, _ = build_detector(recipe, splits.train.coco.categories)
    if recipe.sparsity is None:
        raise ConfigError(
            f"{path}: sparsity: expected a recipe that prunes, got none. Add it with --set sparsity='{{…}}'."
        )
    inputs = example_inputs(recipe, splits, model.stride, torch.device("cpu"))
    sparsifier = Sparsifier(model, recipe.sparsity, inputs, model.run_all)
    if masks is not None:
        sparsifier.load_state_dict(masks)
    return table(sparsifier)
