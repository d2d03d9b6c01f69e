"""A recipe: one YAML file that says everything about one experiment."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsedet.benchmark.upstream import sparsity_block
from sparsedet.benchmark.upstream.file import Translator, read_config
from sparsedet.benchmark.upstream.note import Note
from sparsedet.common.config import ConfigModel, dump, validate
from sparsedet.common.document import Document, apply_overrides, merge
from sparsedet.common.errors import ConfigError, did_you_mean
from sparsedet.common.files import hash_json
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.models import DetectorConfig
from sparsedet.detection.optimization import TrainingConfig
from sparsedet.sparsity import SparsityConfig, check_selector

PATH_KEYS = (
    "data.root",
    "data.cache.folder",
    "initial_checkpoint",
    "detector.backbone.weights",
    "sparsity.limits",
    "sparsity.allocation.curves",
)
PLACE_KEYS = (
    "data.root",
    "data.cache",
    "initial_checkpoint",
    "training.checkpoints",
    "training.trackers",
    "evaluation.every_steps",
)
"""Keys that change no result: where things are, how often a run is saved and looked at, and who watches it."""
MAX_FILES = 100
"""Files that one recipe may be made of."""


class EvaluationConfig(ConfigModel):
    """How a checkpoint is evaluated.

    Attributes:
        batch_size: images per forward pass.
        evaluator: library that computes the COCO metrics; both give the same numbers.
        after_pruning: also evaluate right after the pruning that reaches the target of a level, before any training.
        every_steps: also evaluate inside each level, after every so many of its steps; null: at its end only.
        num_samples: validation images kept with the run for the pictures of the report.
    """

    batch_size: int = Field(default=16, ge=1)
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco"
    after_pruning: bool = True
    every_steps: int | None = Field(default=None, ge=1)
    num_samples: int = Field(default=4, ge=0)


class Recipe(ConfigModel):
    """One experiment.

    Attributes:
        data: images and annotations.
        detector: network, assignment, losses, post-processing.
        training: length, optimizer, learning rate, precision.
        sparsity: what is pruned, how much, when; null trains dense.
        evaluation: how each level is evaluated.
        initial_checkpoint: checkpoint of sparsedet or United-Perception whose weights the run starts from; null
            starts as the detector says.
        max_missing: share of the detector's weights that `initial_checkpoint` may lack or have in another shape;
            these keep their fresh initialisation.
        reestimate_batch_norm: batches of training images on which the statistics of batch norms are estimated anew
            right after the pruning that reaches the target of a level; null leaves them. It helps where little or no
            training follows.
        dense_control: go through the levels of `sparsity` (and their learning-rate restarts) without pruning.
        write_analysis: write the table of what would be pruned where to ``analysis/``.
        expected_steps: number of steps the run must turn out to have; null accepts any.
        seed: seed of weights, data order and augmentation.
        published_ap: AP in [0, 1] published elsewhere for each level, in order, to be printed beside ours; null where
            none was.
        assumed: why a value was chosen that the publication leaves open, by key path such as ``training.epochs``.
    """

    data: DataConfig
    detector: DetectorConfig
    training: TrainingConfig
    sparsity: SparsityConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    initial_checkpoint: Path | None = None
    max_missing: float = Field(default=0.0, ge=0, le=1)
    reestimate_batch_norm: int | None = Field(default=None, ge=1)
    dense_control: bool = False
    write_analysis: bool = False
    expected_steps: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    published_ap: tuple[Annotated[float, Field(ge=0, le=1)] | None, ...] | None = None
    assumed: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dense_control and self.sparsity is None:
            raise ValueError(
                "dense_control: expected a sparsity section whose levels to follow, got null. "
                "Add it, or drop dense_control."
            )
        if self.training.checkpoints.keep_best and self.evaluation.every_steps is None:
            raise ValueError(
                "training.checkpoints.keep_best: expected evaluation.every_steps to say how often a level is "
                "evaluated, got null. Set it, or drop keep_best."
            )
        num_levels = max(len(self.target_sparsities), 1)
        if self.published_ap is not None and len(self.published_ap) != num_levels:
            raise ValueError(
                f"published_ap: expected {num_levels} values, one for each level, got {len(self.published_ap)}. "
                "Correct the list."
            )
        for key, selectors in (("freeze", self.training.freeze), ("lr_multipliers", self.training.lr_multipliers)):
            for selector in selectors:
                try:
                    check_selector(selector)
                except ConfigError as error:
                    raise ValueError(f"training.{key}: {error}") from error
        for key in self.assumed:
            check_key(dump(self), key)
        return self

    @property
    def target_sparsities(self) -> tuple[float, ...]:
        """Target of each level; empty for a dense run without levels."""
        if self.sparsity is None:
            return ()
        fixed = self.sparsity.pattern.fixed_sparsity
        targets = self.sparsity.schedule.target_sparsities if fixed is None else (fixed,)
        return tuple(target for target in targets if target is not None)

    @property
    def scheduler(self) -> str:
        """Type of the schedule that prunes; ``dense`` where nothing is pruned."""
        return "dense" if self.sparsity is None or self.dense_control else self.sparsity.schedule.type

    @property
    def pattern(self) -> str:
        """Allowed shape of zeros, such as ``unstructured`` or ``2:4``; ``none`` where nothing is pruned."""
        return "none" if self.sparsity is None or self.dense_control else self.sparsity.pattern.label

    @property
    def allocation(self) -> str | None:
        """Type of the allocation; None where nothing is allocated."""
        if self.sparsity is None or self.dense_control or self.sparsity.allocation is None:
            return None
        return self.sparsity.allocation.type

    @property
    def budget(self) -> Literal["weights", "macs"]:
        """What the targets are shares of."""
        return "weights" if self.sparsity is None else self.sparsity.budget

    def hash(self) -> str:
        """Return a hash of what the experiment is, wherever its data, start weights and checkpoints are kept."""
        return hash_json(_without_places(dump(self)))


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and what its reader should be told about keys of other projects."""

    recipe: Recipe
    notes: tuple[Note, ...] = field(default=())


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> LoadedRecipe:
    """Read a recipe file and do what `finish_recipe` does.

    Raises:
        ConfigError: with file, line, key path, what was expected and what was found.
    """
    document = read_config(path)
    if "experiments" in document.data:
        raise ConfigError(f"{path}: expected a recipe, got a suite of several. Give the recipe of one experiment.")
    return finish_recipe(document, overrides)


def _with_base(
    document: Document, translator: Translator, num_files: Iterator[int], seen: tuple[Path, ...] = ()
) -> Document:
    """Lay `document` on the file (or the files, one on another) that its ``base:`` names, and these on their own."""
    document = translator.translate(document)
    if "base" not in document.data:
        return document
    bases = document.data.pop("base")
    place, folder = document.position(("base",)), document.folders[("base",)]
    for name in reversed(bases if isinstance(bases, list) else [bases]):
        if not isinstance(name, str):
            raise ConfigError(
                f"{place}: base: expected the path of a recipe or a list of paths, got {name!r}. Correct it."
            )
        path = Path(os.path.realpath(folder / name))
        if path in seen:
            raise ConfigError(f"{place}: base: expected another file, got a circle through {path}. Break it.")
        if next(num_files) >= MAX_FILES:  # each may name several, which doubles their number from file to file
            raise ConfigError(f"{place}: base: expected at most {MAX_FILES} files in all, got more. Name fewer.")
        document = merge(_with_base(read_config(path), translator, num_files, (*seen, path)), document)
    return document


def finish_recipe(document: Document, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Lay a recipe document on its ``base:`` files, apply ``--set`` overrides, translate, resolve paths, validate.

    Files of United-Perception are translated before anything is laid over them; overrides of keys that only they
    have change them before that.

    Raises:
        ConfigError: with file, line, key path, what was expected and what was found.
    """
    translator = Translator(overrides)
    document = apply_overrides(_with_base(document, translator, count()), translator.native_overrides)
    notes = (*translator.notes, *sparsity_block.translate_document(document))
    for key in PATH_KEYS:
        if not key.endswith(".weights") or _is_path(document, key):
            document.resolve_path(key)
    recipe = validate(Recipe, document)
    return LoadedRecipe(recipe, notes)


def check_key(data: dict[str, Any], key: str) -> None:
    """Check that the dotted `key` is one of the resolved recipe `data`.

    Raises:
        ValueError: a part of it is not; the message names the nearest one.
    """
    node: Any = data
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = sorted(node) if isinstance(node, dict) else []
            raise ValueError(
                f"assumed: expected key paths of this recipe, got '{key}'.{did_you_mean(part, known)} Correct it."
            )
        node = node[part]


def _is_path(document: Document, dotted: str) -> bool:
    """Tell the path of a weights file from a name such as ``imagenet``."""
    value: Any = document.data
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return isinstance(value, str) and ("/" in value or Path(value).suffix in {".pt", ".pth"})


def _without_places(data: dict[str, Any]) -> dict[str, Any]:
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for key in PLACE_KEYS:
        *parents, last = key.split(".")
        (data[parents[0]] if parents else data).pop(last)
    return data
