"""YAML documents that remember where each value was written, so that an error can name file and line."""

import datetime
import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLWarning
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.scalarbool import ScalarBoolean

from sparsedet.common.errors import ConfigError

KeyPath = tuple[str | int, ...]
Version = tuple[int, int]
MAX_BYTES = 2**20
MAX_VALUES = 100_000
MAX_DEPTH = 50
PLAIN_TAGS = {None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


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
        given = parent.get(keys[-1]) if isinstance(parent, dict) else None
        if isinstance(given, str) and given != "None":  # which no path may be, see `validate`
            folder = self.folders.get(keys, Path.cwd())
            parent[keys[-1]] = os.path.normpath(folder.absolute() / Path(given).expanduser())


def format_path(path: KeyPath) -> str:
    """Return ``("a", "b", 0)`` as ``a.b[0]``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


# --- reading -----------------------------------------------------------------------------------------------


def read_yaml(path: Path, version: Version = (1, 2)) -> Document:
    """Read a YAML file whose top level is a mapping; `version` decides what plain scalars such as ``yes`` mean.

    Raises:
        ConfigError: the file is missing, is not YAML, has duplicate keys, tags, or another top level.
    """
    expected = f"{path}: expected a readable YAML file"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe or device may never end
            raise ConfigError(f"{expected}, got no ordinary file. Check the path.")
        if about.st_size > MAX_BYTES:
            raise ConfigError(f"{expected} of at most {MAX_BYTES} bytes, got {about.st_size}. Check the path.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{expected}, got '{reason}'. Check the path.") from error
    return parse_yaml(text, str(path), path.absolute().parent, version)


def parse_yaml(text: str, source: str, folder: Path, version: Version = (1, 2)) -> Document:
    """Parse YAML `text`; `source` and `folder` are where it came from (see `read_yaml`)."""
    yaml = YAML(typ="rt")
    yaml.version = version
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", YAMLWarning)  # 1e-3 is a number here, in YAML 1.1 too
            _check_nesting(yaml, text)
            tree = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context).split("\n")[0]
        raise ConfigError(f"{source}{line}: expected valid YAML, got {problem}. Correct that line.") from error
    except Exception as error:  # ruamel has many kinds for what it does not expect
        raise ConfigError(f"{source}: expected valid YAML, got {error}. Correct the file.") from error
    if not isinstance(tree, CommentedMap):
        raise ConfigError(
            f"{source}: expected a mapping of keys at the top level, got {_kind(tree)}. "
            "Start the file with 'key: value' lines."
        )
    document = Document({}, source=source)
    document.data = _plain(tree, (), document, folder)
    return document


def _check_nesting(yaml: YAML, text: str) -> None:
    """Refuse deep nesting, which takes ruamel seconds, and an alias in what it stands for, which it reads as null."""
    inside: list[str | None] = []
    for event in yaml.parse(text):
        if isinstance(event, CollectionStartEvent):
            inside.append(event.anchor)
            if len(inside) > MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} levels of nesting"
                raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        elif isinstance(event, CollectionEndEvent):
            inside.pop()
        elif isinstance(event, AliasEvent) and event.anchor in inside:
            raise MarkedYAMLError(problem=f"the alias '{event.anchor}' inside itself", problem_mark=event.start_mark)


def _kind(tree: Any) -> str:
    return "nothing" if tree is None else "a list" if isinstance(tree, list) else "a single value"


def _plain(node: Any, path: KeyPath, document: Document, folder: Path) -> Any:
    """Convert ruamel's tree to plain data and note where each key stands; an alias becomes a copy."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, TaggedScalar) or tag not in PLAIN_TAGS:
        raise ConfigError(
            f"{document.position(path)}: {format_path(path) or 'top level'}: expected plain YAML, got the tag '{tag}'. "
            "Tags are not evaluated: write the value itself."
        )
    if len(document.positions) > MAX_VALUES:
        raise ConfigError(
            f"{document.source}: expected at most {MAX_VALUES} values, got more. Look for aliases inside aliases."
        )
    if len(path) > MAX_DEPTH:
        raise ConfigError(
            f"{document.position(path)}: expected at most {MAX_DEPTH} levels of nesting, got more. "
            "Look for brackets, or an alias inside what it stands for."
        )
    if type(node) is CommentedMap:
        return {key: _child(node, key, path, document, folder) for key in node}
    if type(node) is CommentedSeq:
        return [_child(node, index, path, document, folder) for index in range(len(node))]
    return _scalar(node, f"{document.position(path)}: {format_path(path)}")


def _scalar(node: Any, where: str) -> Any:
    if isinstance(node, bool | ScalarBoolean):  # the latter has an anchor and is an int
        return bool(node)
    if node is None:
        return None
    if isinstance(node, int):
        if not -(2**63) <= node < 2**63:
            raise ConfigError(f"{where}: expected whole numbers of 64 bits, got a larger one. Correct it.")
        return int(node)
    if isinstance(node, float):
        return float(node)
    if isinstance(node, str | datetime.date):
        if not _is_text(node):
            raise ConfigError(f"{where}: expected text, got a null or half a Unicode character in it. Remove it.")
        return str(node)
    raise ConfigError(
        f"{where}: expected a mapping, a list, text, a number, true, false or null, got {type(node).__name__}. "
        "Write it as one of these."
    )


def _child(node: Any, key: str | int, path: KeyPath, document: Document, folder: Path) -> Any:
    child_path = (*path, key)
    if type(node) is CommentedMap and not (isinstance(key, str) and _is_text(key)):
        raise ConfigError(
            f"{document.source}:{node.lc.line + 1}: {format_path(path)}: expected text as key, got {key!r}. "
            "Put the key in quotes."
        )
    place = (node.lc.data or {}).get(key, (node.lc.line,))  # keys that << merges in have no place of their own
    document.positions[child_path] = f"{document.source}:{place[0] + 1}"
    document.folders[child_path] = folder
    return _plain(node[key], child_path, document, folder)


def parse_json(text: str, source: str) -> Document:
    """Read what the project itself wrote as JSON: a mapping within the limits that YAML has too.

    Raises:
        ConfigError: it is no JSON, has another top level, or is too large or too deep.
    """
    try:
        data = json.loads(text)
        is_sound = isinstance(data, dict) and _is_plain(data)
    except (ValueError, RecursionError):
        is_sound = False
    if not is_sound:
        raise ConfigError(
            f"{source}: expected a mapping in JSON with text as text may be, of at most {MAX_VALUES} values and "
            f"{MAX_DEPTH} levels, got {text[:40]!r}. The file is damaged: write it again."
        )
    return Document(data, source=source)


def _is_plain(data: Any) -> bool:
    """Tell whether parsed JSON keeps to what YAML may hold."""
    level, num_values = [data], 0
    for _ in range(MAX_DEPTH):
        num_values += len(level)
        if not all(map(_is_text, level)) or num_values > MAX_VALUES:
            return False
        level = [value for node in level if isinstance(node, dict | list) for value in _parts(node)]
    return not level


def _parts(node: dict[str, Any] | list[Any]) -> list[Any]:
    return [*node, *node.values()] if isinstance(node, dict) else node


def _is_text(value: Any) -> bool:
    """Tell whether text can be a path and be written to a file; other values can."""
    try:
        return not isinstance(value, str) or "\0" not in value.encode().decode()
    except UnicodeEncodeError:
        return False


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
        keys, data = parse_override(text)
        for key in reversed(keys):
            data = {key: data}
        over = Document(data, source=document.source)
        for path in key_paths(data, ()):
            over.positions[path] = "--set"
            over.folders[path] = Path.cwd()
        document = merge(document, over)
    return document


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Return the keys and the value of ``a.b=value``; raises ConfigError where it is not of this form."""
    dotted, equals, value = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"--set: expected key=value, got '{text}'. Write for example --set training.steps=100.")
    data: Any = None
    if value.strip():
        data = parse_yaml(f"value: {value}", f"--set {dotted}", Path.cwd()).data["value"]
    return tuple(dotted.split(".")), data
