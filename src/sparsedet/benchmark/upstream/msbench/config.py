"""Reads what `build_sparse_scheduler` is given, by the same tables as the ``sparsity:`` block of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedet.benchmark.upstream.note import Note
from sparsedet.benchmark.upstream.section import Section, Translation
from sparsedet.benchmark.upstream.sparsity_block import exclude_own_names, read_block
from sparsedet.common.config import validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import SparsityConfig

SOURCE = "build_sparse_scheduler"
INTERNAL = {"MaskGeneratorConfig": "mask_generator", "FakeSparseConfig": "fake_sparse"}
"""Key that MSBench's ``prepare`` reads -> key of the user's form."""
DEFAULT_SCHEDULER = {"type": "BaseScheduler"}
DEFAULT_TOTAL_ITERS = 10000
STEPS = "total_iters"
DONE_HERE = (
    STEPS,
    "do_sparse_analysis",
    "output_dir",
    "save_dir",
    "default_input_shape",
    "default_input_custom",
    "lr_scheduler",
)
"""Arguments that mean here what they mean in MSBench, and so need no note."""


@dataclass(frozen=True)
class Settings:
    """What a configuration says.

    Attributes:
        scheduler: name of its class.
        sparsity: what is pruned, and how much.
        total_iters: number of iterations that the levels share; None: to be set before the first.
        do_sparse_analysis: allocate anew even if there are tables in `output_dir`.
        output_dir: folder of the tables.
        save_dir: folder of the level files.
        example_input: what the model's forward is given, where it must be run; None: zeros of the shape in `sparsity`.
        lr_scheduler: as for ``set_lr_scheduler``; None: handed over later.
        notes: what became of the keys that do not mean the same as in MSBench.
    """

    scheduler: str
    sparsity: SparsityConfig
    total_iters: int | None
    do_sparse_analysis: bool
    output_dir: Path
    save_dir: Path
    example_input: Any
    lr_scheduler: Any
    notes: tuple[Note, ...]


def read_config(config: Mapping[str, Any]) -> Settings:
    """Read MSBench's configuration, whichever of its forms it has.

    Raises:
        ConfigError: a key is unknown, or asks for what is refused.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{SOURCE}: expected a mapping with the key 'scheduler', got {type(config).__name__}. "
            "Pass what stands below 'sparsity:' in the file."
        )
    block = _user_form(_plain(config))
    native = Document({}, source=SOURCE)
    translation = Translation(Document(block, source=SOURCE), native)
    chosen = read_block(Section(translation, (), block), exclude_own_names, STEPS, with_base=True)
    values = {"do_sparse_analysis": False, "output_dir": "", "save_dir": "", **chosen.values}
    given = (config.get("scheduler") or {}).get("kwargs") or {}
    notes = [note for note in translation.notes if note.key.rpartition(".")[2] not in DONE_HERE]
    return Settings(
        scheduler=chosen.name,
        sparsity=validate(SparsityConfig, native, ("sparsity",)),
        total_iters=native.data.get(STEPS) if STEPS in given else DEFAULT_TOTAL_ITERS,
        do_sparse_analysis=values["do_sparse_analysis"],
        output_dir=Path(values["output_dir"]),
        save_dir=Path(values["save_dir"]),
        example_input=given.get("default_input_custom"),
        lr_scheduler=given.get("lr_scheduler"),
        notes=tuple(notes),
    )


def _user_form(block: dict[str, Any]) -> dict[str, Any]:
    for internal, name in INTERNAL.items():
        if internal in block:
            if name in block:
                raise ConfigError(f"{SOURCE}: {name}: expected one of '{name}' and '{internal}', got both. Remove one.")
            block[name] = block.pop(internal)
    if block.get("sparse_mapping") is not None:
        raise ConfigError(
            f"{SOURCE}: sparse_mapping: expected nothing, got {block['sparse_mapping']}. Refused: no layer is swapped; "
            "every conv and linear layer is found, and no_prune_layer leaves some out."
        )
    block.pop("sparse_mapping", None)
    scheduler = block.get("scheduler")
    if scheduler is None or isinstance(scheduler, dict):
        block["scheduler"] = {**DEFAULT_SCHEDULER, **(scheduler or {})}
    return block


def _plain(value: Any) -> Any:
    """Return a copy of plain data; tuples are lists, and objects such as classes are their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return getattr(value, "__name__", type(value).__name__)
