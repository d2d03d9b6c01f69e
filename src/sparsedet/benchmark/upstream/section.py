"""Reading another project's file key by key, so that every key ends in a note or in an error.

Tables say what becomes of the keys of a mapping, so that a table can be read as documentation::

    FPN = {"outplanes": to("detector.neck.channels", "a whole number"), "skip": ignored("nothing ever read it")}

Key paths are written as the file has them, except that the entries of lists with names of their own (``net``,
``hooks``) stand under their names: ``net.neck.kwargs.outplanes``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sparsedet.benchmark.upstream.note import Note
from sparsedet.common.document import Document, KeyPath, format_path
from sparsedet.common.errors import ConfigError, did_you_mean

REQUIRED: Final = object()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


KINDS: dict[str, Callable[[Any], bool]] = {
    "a number": _is_number,
    "a whole number": _is_whole,
    "true or false": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "a list of numbers": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "a list of whole numbers": lambda value: isinstance(value, list) and all(map(_is_whole, value)),
    "a list of mappings": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    "a mapping": lambda value: isinstance(value, dict),
    "anything": lambda value: True,
}


@dataclass(frozen=True)
class Key:
    """What becomes of one key; made by `to`, `fixed`, `ignored`, `value` and `part`.

    Attributes:
        kind: what its value is, one of `KINDS`.
        default: value where the file lacks the key; `REQUIRED` makes that an error.
        target: native key path that the value goes to.
        accepted: the only value that is accepted.
        reason: why the key has no effect, or why other values are refused.
    """

    kind: str = "anything"
    default: Any = REQUIRED
    target: str = ""
    accepted: Any = REQUIRED
    reason: str = ""


def to(target: str, kind: str, default: Any = REQUIRED) -> Key:
    """Return a key whose value goes to a native key as it is."""
    return Key(kind, default, target=target)


def fixed(accepted: Any, reason: str) -> Key:
    """Return a key that may only say what is done anyway; `reason` is why another value is refused."""
    return Key(default=accepted, accepted=accepted, reason=reason)


def ignored(reason: str) -> Key:
    """Return a key without effect."""
    return Key(default=None, reason=reason)


def value(kind: str, default: Any = REQUIRED) -> Key:
    """Return a key whose value the caller uses and takes a note of."""
    return Key(kind, default)


def part(default: Any = REQUIRED) -> Key:
    """Return a mapping that the caller reads as a `Section`; with a default, null and absent give the default."""
    return Key("a mapping", default)


@dataclass(frozen=True)
class Type:
    """What becomes of ``{type: NAME, kwargs: {...}}`` for one NAME.

    Attributes:
        keys: of ``kwargs``.
        target: native key path that stands for it, or "" where it has no effect.
        native: value that goes to `target`; None where `target` only tells the reader.
        reason: why it has no effect.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    target: str = ""
    native: Any = None
    reason: str = ""


class Translation:
    """The native document that is being written, and what became of each key so far.

    Attributes:
        source: document that is translated.
        native: document that is written.
        notes: one for each key of `source` that was read.
        up_compat: reproduce the faults of United-Perception.
    """

    def __init__(self, source: Document, native: Document) -> None:
        self.source = source
        self.native = native
        self.notes: list[Note] = []
        self.up_compat = False

    def set(self, target: str, native: Any, path: KeyPath) -> None:
        """Write a native key that comes from `path` in the source; relative paths start at the current folder."""
        keys = tuple(target.split("."))
        node = self.native.data
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = native
        for length in range(1, len(keys)):
            self.native.positions.setdefault(keys[:length], self.source.position(path))
        self.native.positions[keys] = self.source.position(path)
        self.native.folders[keys] = Path.cwd()


class Section:
    """One mapping of the source.

    Args:
        translation: where native keys and notes go.
        path: of the mapping in the source.
        data: the mapping.
        is_default: the source lacks it, and `data` is what stands in for it; no notes are taken then.
    """

    def __init__(
        self, translation: Translation, path: KeyPath, data: Mapping[str, Any], is_default: bool = False
    ) -> None:
        self.translation = translation
        self.path = path
        self.data = data
        self.is_default = is_default

    def read(self, keys: Mapping[str, Key]) -> dict[str, Any]:
        """Read the whole mapping by a table: check every key, write the native ones, take notes.

        Returns:
            the value of each key of the table; a `Section` where it is a mapping to be read.

        Raises:
            ConfigError: a key is unknown or lacks, or its value is not what is accepted.
        """
        for key in self.data:
            if key not in keys:
                raise self.error(
                    key,
                    f"one of {sorted(keys)}",
                    f"the unknown key '{key}'",
                    f"{_hint(key, keys)}Correct or remove it.",
                )
        return {key: self._read(key, rule) for key, rule in keys.items()}

    def _read(self, key: str, rule: Key) -> Any:
        found = self.data.get(key)
        is_default = found is None and (key not in self.data or rule.default is not REQUIRED)
        if is_default:
            found = self._default(key, rule)
        elif not KINDS[rule.kind](found):
            raise self.error(key, rule.kind, quote(found), "Correct it.")
        if rule.kind == "a mapping" and not self.data.get(key):
            self.no_effect(key, "it is empty")
        if rule.accepted is not REQUIRED:
            if found != rule.accepted:
                raise self.error(key, show(rule.accepted), quote(found), f"Refused: {rule.reason}.")
            self.no_effect(key, f"{show(found)} is what is done")
        elif rule.target:
            self.send(key, found, rule.target)
        elif rule.reason:
            self.no_effect(key, rule.reason)
        if not isinstance(found, dict):
            return found
        return Section(self.translation, (*self.path, key), found, is_default or self.is_default)

    def _default(self, key: str, rule: Key) -> Any:
        if rule.default is REQUIRED:
            others = [name for name in self.data if name != key]
            raise self.error(key, rule.kind, "nothing", f"{_hint(key, others)}Add the key.")
        return rule.default

    def choose(self, types: Mapping[str, Type], beside: Mapping[str, Key] | None = None) -> "Chosen":
        """Read ``{type: NAME, kwargs: {...}}``; `beside` are keys that may stand beside the two.

        Raises:
            ConfigError: NAME is unknown, or what `read` raises.
        """
        rest = self.read({"type": value("text"), "kwargs": part({}), **(beside or {})})
        name, kwargs = rest.pop("type"), rest.pop("kwargs")
        chosen = types.get(name)
        if chosen is None:
            raise self.error("type", f"one of {sorted(types)}", repr(name), f"{_hint(name, types)}Correct it.")
        if chosen.reason:
            self.no_effect("type", chosen.reason)
        elif chosen.native is None:
            self.mapped("type", chosen.target)
        else:
            self.send("type", chosen.native, chosen.target)
        return Chosen(name, kwargs, kwargs.read(chosen.keys), rest)

    def items(self, key: str) -> list["Section"]:
        """Return the mappings in the list at `key`, which was read as "a list of mappings"."""
        path = (*self.path, key)
        found = self.data.get(key) or []
        return [Section(self.translation, (*path, index), item) for index, item in enumerate(found)]

    def send(self, key: str, native: Any, *targets: str) -> None:
        """Write a native value and, where the file has `key`, take a note of it."""
        for target in targets:
            self.translation.set(target, native, (*self.path, key))
        self.mapped(key, f"{', '.join(targets)}: {show(native)}")

    def mapped(self, key: str, text: str) -> None:
        """Note what `key` became, where the file has it."""
        self._note(key, "mapped", text)

    def no_effect(self, key: str, reason: str) -> None:
        """Note why `key` has no effect, where the file has it."""
        self._note(key, "no effect", reason)

    def _note(self, key: str, outcome: Any, text: str) -> None:
        if key in self.data and not self.is_default:
            self.translation.notes.append(Note(format_path((*self.path, key)), outcome, text))

    def error(self, key: str, expected: str, got: str, advice: str) -> ConfigError:
        """Return the error that names place, key path, contract and value."""
        path = (*self.path, *([key] if key else []))
        place = self.translation.source.position(path)
        return ConfigError(f"{place}: {format_path(path)}: expected {expected}, got {got}. {advice}")


@dataclass(frozen=True)
class Chosen:
    """A ``{type: NAME, kwargs: {...}}`` that was read.

    Attributes:
        name: NAME.
        kwargs: the mapping of its arguments.
        values: the value of each argument.
        beside: the value of each key beside the two.
    """

    name: str
    kwargs: Section
    values: dict[str, Any]
    beside: dict[str, Any]


def show(native: Any) -> str:
    """Return a value as it would stand in a flow of YAML."""
    return native if isinstance(native, str) else json.dumps(native)


def quote(found: Any) -> str:
    """Return a value that was found as an error shows it."""
    text = repr(found) if isinstance(found, str) else json.dumps(found)
    return text if len(text) <= 80 else text[:77] + "…"


def _hint(name: Any, known: Any) -> str:
    return f"{did_you_mean(str(name), known)} ".lstrip()
