"""The errors users see.

Every message has one shape: ``<key path or argument>: expected <contract>, got <value>. <what to do next>``.

SparseDetError
├── ConfigError            a recipe, a suite or an argument is wrong
├── TargetMatchError       a selector matches nothing, or nothing is left to prune
├── UnsupportedShapeError  a pattern cannot serve the shape of a weight
├── UnreachableTargetError the asked sparsity cannot be reached with the chosen weights
├── DatasetError           an annotation file or an image is wrong
├── CheckpointError        a checkpoint cannot be read or belongs to something else
├── StorageError           a folder cannot be written or the disk is full
├── ProcessesError         another process of the run has ended
└── MissingExtraError      an optional dependency is not installed
"""

import difflib
from collections.abc import Iterable

MAX_MESSAGE_LENGTH = 10_000  # characters; what a file from a stranger repeats in it may be endless


class SparseDetError(Exception):
    """Base of all errors that sparsedet raises on purpose; the CLI prints the message and exits 2.

    Attributes:
        is_said: whether the first of several processes, which has the same error, prints it.
    """

    is_said = False

    def __init__(self, *texts: str) -> None:
        super().__init__(*map(_cut, texts))


class ConfigError(SparseDetError, ValueError):
    """A recipe, a suite or an argument is wrong."""


class TargetMatchError(SparseDetError):
    """A selector matches nothing, or nothing is left to prune."""


class UnsupportedShapeError(SparseDetError):
    """A pattern cannot serve the shape of a weight that was named exactly."""


class UnreachableTargetError(SparseDetError):
    """The asked sparsity cannot be reached with the chosen weights."""


class DatasetError(SparseDetError):
    """An annotation file or an image is wrong."""


class CheckpointError(SparseDetError):
    """A checkpoint cannot be read or belongs to something else."""


class StorageError(SparseDetError):
    """A folder cannot be written or the disk is full."""


class ProcessesError(SparseDetError):
    """Another process of the same run has ended."""


class MissingExtraError(SparseDetError):
    """An optional dependency is not installed."""


def _cut(text: str) -> str:
    escaped = escape_lines(text[: MAX_MESSAGE_LENGTH + 1])
    return escaped if len(escaped) <= MAX_MESSAGE_LENGTH else escaped[:MAX_MESSAGE_LENGTH] + "…"


def escape(text: str) -> str:
    """Return `text` with escapes in place of control characters, line ends, and what is no Unicode.

    A terminal acts on some of these, and messages repeat what stands in files of strangers.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def escape_lines(text: str) -> str:
    """Return `text` as `escape` does, but keep its line ends."""
    return "\n".join(map(escape, text.split("\n")))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
