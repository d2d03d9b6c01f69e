"""Whole configuration files of United-Perception: recognised, read and translated to native recipes.

A file is one of United-Perception's when it has a list ``net:`` at its top level. It is translated on its own when it
is read, before any file or override is laid over it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedet.benchmark.upstream.data import read_dataset
from sparsedet.benchmark.upstream.layer_names import exclude_upstream_names
from sparsedet.benchmark.upstream.network import read_network
from sparsedet.benchmark.upstream.note import Note
from sparsedet.benchmark.upstream.section import Key, Section, Translation, ignored, part, quote, value
from sparsedet.benchmark.upstream.sparsity_block import BLOCK, NOT_TRACED, has_block, read_block, translate_document
from sparsedet.benchmark.upstream.training import read_ema, read_hooks, read_runtime, read_saver, read_trainer
from sparsedet.common.document import Document, KeyPath, key_paths, parse_override, read_yaml
from sparsedet.common.errors import ConfigError, did_you_mean

YAML_VERSION = (1, 1)
LISTS = {"net": "name", "hooks": "type"}
"""Lists whose entries are addressed by one of their keys."""
TOP: dict[str, Key] = {
    "net": part(),
    "dataset": part(),
    "trainer": part(),
    "saver": part({}),
    "hooks": part({}),
    "runtime": part({}),
    "ema": part(None),
    "sparsity": part(None),
    "leaf_module": ignored(NOT_TRACED),
    "up_compat": value("true or false", False),
}
COMPAT = (
    "matching and score thresholds, ignore regions, regions pooled from all levels, validation images without "
    "annotations, un-shifted cosine, late level restarts: see docs/up_compat.md"
)


def is_upstream(document: Document) -> bool:
    """Tell a file of United-Perception from a native recipe."""
    return isinstance(document.data.get("net"), list)


def read_config(path: Path) -> Document:
    """Read a native recipe or suite (YAML 1.2) or a file of United-Perception (YAML 1.1).

    Raises:
        ConfigError: see `read_yaml`.
    """
    document = read_yaml(path)
    return read_yaml(path, YAML_VERSION) if is_upstream(document) else document


class Translator:
    """Translates the files of United-Perception among those that make up one recipe.

    Args:
        overrides: ``key=value``; those of keys that only United-Perception's files have are applied to them.

    Attributes:
        notes: what became of the keys of the files translated so far.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.notes: list[Note] = []
        self._overrides = overrides
        self._taken: set[str] = set()

    @property
    def native_overrides(self) -> list[str]:
        """Overrides that were not applied to a file of United-Perception."""
        return [override for override in self._overrides if override not in self._taken]

    def translate(self, document: Document) -> Document:
        """Return the native form of a document: of a file of United-Perception, or of a recipe with MSBench's block.

        Raises:
            ConfigError: a key is wrong, unknown or refused.
        """
        is_whole_file = is_upstream(document)
        if not (is_whole_file or has_block(document)):
            return document
        document = _by_name(document)
        for override in self._overrides:
            if _is_upstream_key(override.partition("=")[0].split("."), document):
                self._taken.add(override)
                _override(document, override)
        if not is_whole_file:
            self.notes.extend(translate_document(document))
            return document
        translation = Translation(document, Document({}, source=document.source))
        _read_file(translation)
        self.notes.extend(translation.notes)
        return translation.native


def _read_file(translation: Translation) -> None:
    root = Section(translation, (), translation.source.data)
    holders = {key: _holder(root, key) for key in root.data if key not in TOP}
    keys = root.read({**TOP, **holders})
    translation.up_compat = keys["up_compat"]
    if translation.up_compat:
        root.mapped("up_compat", COMPAT)
    else:
        root.no_effect("up_compat", "faults are not reproduced")
    has_sparsity = keys["sparsity"] is not None
    read_network(root, keys["net"], has_weights=bool(keys["saver"].data.get("pretrain_model")))
    read_dataset(keys["dataset"])
    read_trainer(keys["trainer"])
    read_ema(keys["ema"], has_sparsity)
    read_hooks(keys["hooks"])
    read_saver(keys["saver"], translation.native.data["detector"]["backbone"]["type"])
    read_runtime(keys["runtime"], has_sparsity)
    if has_sparsity:
        read_block(keys["sparsity"], exclude_upstream_names)
        _check_levels(keys["trainer"], translation.native.data["sparsity"]["schedule"].get("levels", [0.0]))


def _holder(root: Section, key: str) -> Key:
    """Return what becomes of a key that only holds an anchor, or nothing at all."""
    if key.startswith(("overwrite@", "override@")):
        raise root.error(key, "plain keys", quote(key), "Refused: write the values where they belong, or use --set.")
    hint = did_you_mean(key, TOP)
    return ignored(f"UP reads no key of this name; at most its anchor is used{'.' if hint else ''}{hint}")


def _check_levels(trainer: Section, levels: list[float]) -> None:
    epochs = trainer.data["max_epoch"]
    if epochs % len(levels):
        expected = f"a multiple of the {len(levels)} levels of sparsity_table"
        raise trainer.error("max_epoch", expected, quote(epochs), "Correct max_epoch or the table.")


# --- lists as mappings by name, and overrides ----------------------------------------------------------------


def _by_name(document: Document) -> Document:
    """Return a copy whose lists of named entries are mappings by the names."""
    data = dict(document.data)
    renamed: dict[KeyPath, KeyPath] = {}
    for key, field in LISTS.items():
        if key in data and data[key] is not None:
            names = _names(document, key, field)
            data[key] = dict(zip(names, data[key], strict=True))
            renamed |= {(key, index): (key, name) for index, name in enumerate(names)}

    def rename(path: KeyPath) -> KeyPath:
        return (*renamed.get(path[:2], path[:2]), *path[2:])

    positions = {rename(path): place for path, place in document.positions.items()}
    folders = {rename(path): folder for path, folder in document.folders.items()}
    return Document(data, positions, folders, document.source)


def _names(document: Document, key: str, field: str) -> list[str]:
    names: list[str] = []
    entries = document.data[key]
    for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        name = entry.get(field) if isinstance(entry, dict) and isinstance(entries, list) else None
        if not isinstance(name, str) or name in names:
            place = document.position((key, index) if isinstance(entries, list) else (key,))
            got = f"'{name}' twice" if name in names else repr(entry)[:80]
            raise ConfigError(
                f"{place}: {key}: expected a list of mappings, each with its own '{field}', got {got}. Correct it."
            )
        names.append(name)
    return names


def _is_upstream_key(keys: list[str], document: Document) -> bool:
    if keys[0] == "sparsity":
        return len(keys) > 1 and keys[1] in BLOCK and isinstance(document.data.get("sparsity"), dict)
    return keys[0] in TOP


def _override(document: Document, text: str) -> None:
    """Set one key, whatever stands below it, as United-Perception's ``--opts`` does."""
    keys, new = parse_override(text)
    if len(keys) == 1 and keys[0] in LISTS:
        new = _by_name(Document({keys[0]: new}, {keys: "--set"})).data[keys[0]]
    node: dict[str, Any] = document.data
    for depth, key in enumerate(keys[:-1], start=1):
        below = node.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(
                f"--set {'.'.join(keys)}: expected a mapping at '{'.'.join(keys[:depth])}', got {below!r}. "
                "Set that key as a whole."
            )
        node = below
    node[keys[-1]] = new
    for path in [(), *key_paths(new)]:
        document.positions[(*keys, *path)] = "--set"
