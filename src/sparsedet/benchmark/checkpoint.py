"""Checkpoints of experiments: a detector with the recipe it came from, its categories and its masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.benchmark.compact import read_any
from sparsedet.benchmark.content import check_content
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.upstream.checkpoint import upstream_state
from sparsedet.benchmark.weights import check_fit, load_state
from sparsedet.common.checkpoint import is_sparsedet
from sparsedet.common.config import validate
from sparsedet.common.document import apply_overrides, parse_json
from sparsedet.common.errors import CheckpointError
from sparsedet.detection.data.coco import Category
from sparsedet.detection.models import Detector
from sparsedet.export.compact import num_dense_bytes

CHECKPOINT_FILE = "checkpoint.pt"
BEST_FILE = "best.pt"


@dataclass(frozen=True)
class SavedDetector:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        recipe: the recipe it was trained with.
        categories: category of each label.
        model: the detector with its weights, on the CPU, in eval mode.
        level: 0-based index of its level.
        step: number of optimizer steps done.
        masks: mask of each pruned parameter, True = keep; empty for a dense detector. From a compact file they are
            the places of its zeros.
        num_pruned: entries that the masks pruned when it was saved.
        metrics: COCO metrics measured when it was saved.
    """

    path: Path
    recipe: Recipe
    categories: tuple[Category, ...]
    model: Detector
    level: int
    step: int
    masks: dict[str, Tensor]
    num_pruned: dict[str, int]
    metrics: dict[str, float]


def open_checkpoint(path: Path, overrides: tuple[str, ...] = ()) -> SavedDetector:
    """Read a checkpoint or a compact file and build its detector; `overrides` (``key=value``) change its recipe.

    Raises:
        ConfigError: an override is wrong.
        CheckpointError: the file is damaged, of another program, or its weights do not fit its recipe.
    """
    return open_content(read_any(path), path, overrides)


def open_content(content: Any, path: Path, overrides: tuple[str, ...] = ()) -> SavedDetector:
    """Do what `open_checkpoint` does with the content of a checkpoint, which was read from `path`."""
    content = check_content(content, path)
    recipe = validate(Recipe, apply_overrides(parse_json(content["recipe"], str(path)), overrides))
    categories = _categories(content)
    with torch.device("meta"):  # no memory is taken before it is known that the file has as much
        empty = recipe.detector.build(len(categories), pretrained=False)
    check_fit(empty.state_dict(), content["model"], path)
    model = recipe.detector.build(len(categories), pretrained=False)
    load_state(model, content["model"], path)
    sparsifier = content["sparsifier"] or {"masks": {}}
    masks = sparsifier["masks"]
    _check_masks(masks, model, path)
    num_pruned = sparsifier.get("num_pruned") or {name: int((~mask).sum()) for name, mask in masks.items()}
    level, step, metrics = content["level"], content["step"], content["metrics"]
    if masks and level >= len(recipe.target_sparsities):
        raise CheckpointError(
            f"{path}: expected one of the {len(recipe.target_sparsities)} levels of its recipe, got level {level}. "
            "The file is damaged: use another checkpoint."
        )
    return SavedDetector(path, recipe, categories, model.eval(), level, step, masks, num_pruned, metrics)


def build_detector(recipe: Recipe, categories: tuple[Category, ...]) -> tuple[Detector, tuple[str, ...]]:
    """Build the detector of `recipe` with the weights it starts from; also say in words what these are.

    Returns:
        The detector; and lines that say where its weights come from, the first of them in short.

    Raises:
        CheckpointError: the checkpoint is of another model or knows other classes than the data.
    """
    path = recipe.initial_checkpoint
    if path is None:
        weights = recipe.detector.backbone.weights
        words = "from scratch" if weights == "none" else f"backbone weights {Path(weights).name}"
        return recipe.detector.build(len(categories)), (words,)
    content = read_any(path)
    model = recipe.detector.build(len(categories), pretrained=False)
    if is_sparsedet(content):
        content = check_content(content, path)
        _check_categories(_categories(content), categories, path)
        words, state = f"{content['experiment']}/{path.parent.name}", content["model"]
    else:
        words, state = path.name, upstream_state(content, model, path)
    report = load_state(model, state, path, recipe.max_missing)
    return model, (words, *report.lines())


def num_level_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Estimate the size of the files of weights that a level leaves.

    These are a checkpoint (weights, with an average also those in training, two optimizer moments, masks of one byte
    for each weight, with soft masks also the values of pruned weights, which are stored as whole tensors), where the
    best is kept two of them, and a compact file, which is never larger than the dense weights by more than its header.
    """
    num_state_bytes = num_dense_bytes(model.state_dict())
    num_bytes = num_dense_bytes(dict(model.named_parameters()))
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    has_average = recipe.training.ema is not None
    has_soft_masks = recipe.sparsity is not None and recipe.sparsity.keep_pruned_values and not recipe.dense_control
    num_checkpoint_bytes = (1 + has_average) * num_state_bytes + (2 + has_soft_masks) * num_bytes + num_weights
    return (1 + recipe.training.checkpoints.keep_best) * num_checkpoint_bytes + num_state_bytes + 2**20


def _categories(content: dict[str, Any]) -> tuple[Category, ...]:
    return tuple(Category(id=category_id, name=name) for category_id, name in content["categories"])


def _check_masks(masks: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    if unknown := masks.keys() - dict(model.named_parameters()).keys():
        raise CheckpointError(
            f"{path}: expected masks of parameters, got one of '{min(unknown)}'. "
            "The file is damaged: use another checkpoint."
        )


def _check_categories(there: tuple[Category, ...], here: tuple[Category, ...], path: Path) -> None:
    if len(there) != len(here):
        return  # the class predictor has another shape, which `load_state` refuses or leaves out
    if [category.name for category in there] != [category.name for category in here]:
        raise CheckpointError(
            f"{path}: expected a detector of the {len(here)} classes {[c.name for c in here]}, got one of the "
            f"{len(there)} classes {[c.name for c in there]}. Start from a checkpoint trained on the same classes."
        )
