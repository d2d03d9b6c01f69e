"""YAML 1.2 documents that remember where each value was written, so that an error can name file and line."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sparsedet.common.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """Plain data of a configuration and, for each key path, the place it was written at.

    Attributes:
        data: nested dicts, lists and scalars.
        positions: ``"file:line"`` (or ``"--set"``) of each key path.
        folders: folder that relative paths at a key path start from.
    """

    data: dict[str, Any]
    positions: dict[KeyPath, str] = field(default_factory=dict)
    folders: dict[KeyPath, Path] = field(default_factory=dict)
    source: str = "configuration"

    def position(self, path: KeyPath) -> str:
        """Return the place of the longest known prefix of `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.positions:
                return self.positions[path[:length]]
        return self.source

    def part(self, path: KeyPath) -> "Document":
        """Return the mapping at `path` as a document of its own."""
        data: Any = self.data
        for key in path:
            data = data[key]
        places = {key[len(path) :]: place for key, place in self.positions.items() if key[: len(path)] == path}
        folders = {key[len(path) :]: folder for key, folder in self.folders.items() if key[: len(path)] == path}
        return Document(data, places, folders, self.position(path))

    def resolve_path(self, dotted: str) -> None:
        """Make the relative path at `dotted` absolute, from the folder of the file that names it."""
        keys = tuple(dotted.split("."))
        parent: Any = self.data
        for key in keys[:-1]:
            parent = parent.get(key) if isinstance(parent, dict) else None
        if isinstance(parent, dict) and isinstance(parent.get(keys[-1]), str):
            folder = self.folders.get(keys, Path.cwd())
            parent[keys[-1]] = os.path.normpath(folder.absolute() / Path(parent[keys[-1]]).expanduser())


def format_path(path: KeyPath) -> str:
    """Return ``("a", "b", 0)`` as ``a.b[0]``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


# --- reading -----------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Document:
    """Read a YAML 1.2 file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, has duplicate keys, tags, or another top level.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: expected a readable YAML file, got '{reason}'. Check the path.") from error
    return parse_yaml(text, str(path), path.absolute().parent)


def parse_yaml(text: str, source: str, folder: Path) -> Document:
    """Parse YAML 1.2 `text`; `source` and `folder` are where it came from (see `read_yaml`)."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context).split("\n")[0]
        raise ConfigError(f"{source}{line}: expected valid YAML, got {problem}. Correct that line.") from error
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: expected valid YAML, got {error}. Correct the file.") from error
    if not isinstance(tree, CommentedMap):
        raise ConfigError(
            f"{source}: expected a mapping of keys at the top level, got {type(tree).__name__}. "
            "Start the file with 'key: value' lines."
        )
    document = Document({}, source=source)
    document.data = _plain(tree, (), document, folder)
    return document


def _plain(node: Any, path: KeyPath, document: Document, folder: Path) -> Any:
    """Convert ruamel's tree to plain data and note where each key stands."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, TaggedScalar) or (tag is not None and not str(tag).startswith("tag:yaml.org,2002:")):
        raise ConfigError(
            f"{document.position(path)}: {format_path(path)}: expected plain YAML, got the tag '{tag}'. Remove the tag."
        )
    if isinstance(node, CommentedMap):
        for key in node:
            if not isinstance(key, str):
                raise ConfigError(
                    f"{document.source}:{node.lc.line + 1}: {format_path(path)}: expected text as key, got {key!r}. "
                    "Put the key in quotes."
                )
        return {key: _child(node, key, path, document, folder) for key in node}
    if isinstance(node, CommentedSeq):
        return [_child(node, index, path, document, folder) for index in range(len(node))]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, int):
        return int(node)
    if isinstance(node, float):
        return float(node)
    return str(node)


def _child(node: Any, key: str | int, path: KeyPath, document: Document, folder: Path) -> Any:
    child_path = (*path, key)
    line = node.lc.key(key)[0] if isinstance(key, str) else node.lc.item(key)[0]
    document.positions[child_path] = f"{document.source}:{line + 1}"
    document.folders[child_path] = folder
    return _plain(node[key], child_path, document, folder)


# --- merging and overriding --------------------------------------------------------------------------------


def merge(base: Document, over: Document) -> Document:
    """Lay `over` on `base`: mappings merge key by key, everything else is replaced.

    A mapping that names another ``type:`` than the one below it replaces it whole, since the keys of one type
    mean nothing to another.
    """
    merged = Document({}, source=over.source)
    merged.data = _merge(base.data, over.data)
    for path in key_paths(merged.data, ()):
        origin = over if _has(over.data, path) else base
        if path in origin.positions:
            merged.positions[path] = origin.positions[path]
        if path in origin.folders:
            merged.folders[path] = origin.folders[path]
    return merged


def _merge(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "type" in above and above["type"] != below.get("type"):
        return above
    return {**below, **{key: _merge(below[key], value) if key in below else value for key, value in above.items()}}


def key_paths(node: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every value in nested dicts and lists."""
    items: Sequence[tuple[str | int, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, value in items:
        yield (*path, key)
        yield from key_paths(value, (*path, key))


def _has(node: Any, path: KeyPath) -> bool:
    for key in path:
        if not (key in node if isinstance(node, dict) else isinstance(node, list) and key in range(len(node))):
            return False
        node = node[key]
    return True


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Apply ``a.b=value`` overrides; values are read as YAML, relative paths start at the current folder.

    Raises:
        ConfigError: an override is not of the form ``key=value``.
    """
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set: expected key=value, got '{text}'. Write for example --set training.steps=100.")
        data: Any = None
        if value.strip():
            data = parse_yaml(f"value: {value}", f"--set {dotted}", Path.cwd()).data["value"]
        for key in reversed(dotted.split(".")):
            data = {key: data}
        over = Document(data, source=document.source)
        for path in key_paths(data, ()):
            over.positions[path] = "--set"
            over.folders[path] = Path.cwd()
        document = merge(document, over)
    return document
