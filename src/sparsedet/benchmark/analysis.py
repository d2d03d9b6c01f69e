"""Tables about single weights: what would be pruned where and why, and what was."""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.benchmark.calibration import calibration_of
from sparsedet.benchmark.checkpoint import CHECKPOINT_FILE, build_detector, open_checkpoint
from sparsedet.benchmark.compact import WEIGHTS_FILE
from sparsedet.benchmark.parameters import choose_parameters_
from sparsedet.benchmark.recipe import Recipe, load_recipe
from sparsedet.common.files import write_json, write_text
from sparsedet.detection.data.loader import padded_val_size, val_loader
from sparsedet.detection.data.splits import Splits, open_splits
from sparsedet.detection.models import Detector
from sparsedet.sparsity import Measurement, Sparsifier, measure, profile_model

Row = dict[str, Any]
STAND_IN_SIZE = (480, 640)


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


def example_inputs(recipe: Recipe, splits: Splits | None, stride: int, device: torch.device) -> tuple[Tensor]:
    """Return the input on which MACs are counted: of the shape the recipe gives, or of the first validation image.

    Without data, an image of 640x480 pixels (the most frequent size in COCO) stands in for the latter.
    """
    shape = recipe.sparsity.input_shape if recipe.sparsity is not None else None
    if shape is None and splits is not None:
        shape = tuple(next(val_loader(splits.val, 1, stride)).images.shape)
    elif shape is None:
        shape = (1, 3, *padded_val_size(recipe.data, STAND_IN_SIZE, stride))
    return (torch.zeros(shape, device=device),)


@dataclass(frozen=True)
class Analysis:
    """What would be pruned where.

    Attributes:
        rows: one for each conv/linear weight, see `table`; of a recipe that prunes nothing, see `layer_rows`.
        warnings: what stood in for something that is not there, and what was put right or is odd about the data.
    """

    rows: list[Row]
    warnings: tuple[str, ...] = ()


def analyze_file(path: Path, overrides: tuple[str, ...] = ()) -> Analysis:
    """Return the table of a recipe (with its start weights) or of a checkpoint.

    Where the data of a recipe with ``data.num_classes`` are not there, its detector has fresh weights.

    Raises:
        SparseDetError: the file or its data cannot be read, or the sparsity cannot be had.
    """
    if path.suffix in (Path(CHECKPOINT_FILE).suffix, Path(WEIGHTS_FILE).suffix):
        saved = open_checkpoint(path, overrides)
        splits = open_splits(saved.recipe.data, saved.recipe.seed)
        state = {"level": saved.level, "masks": saved.masks} if saved.masks else None
        return Analysis(_rows(saved.recipe, saved.model, splits, state), splits.warnings)
    recipe = load_recipe(path, overrides).recipe
    annotations = recipe.data.train_annotations
    if recipe.data.num_classes is None or annotations.exists():
        splits = open_splits(recipe.data, recipe.seed)
        model, _ = build_detector(recipe, splits.train.coco.categories)
        return Analysis(_rows(recipe, model, splits, None), splits.warnings)
    model = recipe.detector.build(recipe.data.num_classes, pretrained=False)
    warning = (
        f"{annotations}: not there, so fresh weights are analysed (allocations depend on them), and without "
        "sparsity.input_shape MACs are counted on an image of 640x480 pixels"
    )
    return Analysis(_rows(recipe, model, None, None), (warning,))


def _rows(recipe: Recipe, model: Detector, splits: Splits | None, state: dict[str, Any] | None) -> list[Row]:
    device = torch.device("cpu")
    inputs = example_inputs(recipe, splits, model.stride, device)
    if recipe.sparsity is None:
        return layer_rows(measure(model, profile=profile_model(model, inputs, model.run_all)))
    choose_parameters_(recipe, model, lambda: inputs)  # what is frozen stays dense
    calibration = calibration_of(recipe, splits, model.stride, device)
    sparsifier = Sparsifier(model, recipe.sparsity, inputs, model.run_all, calibration)
    if state is not None:
        sparsifier.load_state_dict(state)
    return table(sparsifier)
