"""What reading a data set turns up, counted by kind; what is refused ends in one error."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsedet.common.errors import DatasetError, escape
from sparsedet.detection.data.kinds import KINDS, Policy

MAX_FAULTS_SHOWN = 10
MAX_EXAMPLES = 8
MAX_VALUE_LENGTH = 200  # characters of a value from a file that a message repeats

BBox = tuple[float, float, float, float]  # (x, y, width, height) in pixels


@dataclass(frozen=True, slots=True)
class Example:
    """One place where something was found.

    Attributes:
        text: the place.
        image_id: id of the image it is about; None where it is about no single one.
        bbox: the box it is about, as the file has it.
        twin: file of the image that this one looks like.
    """

    text: str
    image_id: int | None = None
    bbox: BBox | None = None
    twin: Path | None = None


@dataclass(frozen=True)
class Finding:
    """All that was found of one kind in one annotation file.

    Attributes:
        kind: key of `KINDS`.
        policy: what training does about it.
        what: the kind in words.
        count: how often.
        examples: the first places.
    """

    kind: str
    policy: Policy
    what: str
    count: int
    examples: tuple[Example, ...]

    def __str__(self) -> str:
        """Return how often, what, and where first."""
        shown = ", ".join(example.text for example in self.examples[:3])
        return f"{self.count} x {self.what} ({shown}{', …' if self.count > 3 else ''})"


@dataclass
class Findings:
    """What was found in one annotation file.

    Attributes:
        source: the file; every message begins with it.
        faults: full messages of all that is refused: ``<source>: <where>: expected …, got …. <what to do>``.
        max_examples: places of each kind that are kept; the rest is only counted.
    """

    source: str
    faults: list[str] = field(default_factory=list)
    max_examples: int = MAX_EXAMPLES
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, list[Example]] = field(default_factory=dict)

    def fault(
        self,
        kind: str,
        where: str,
        expected: str,
        got: object,
        remedy: str,
        image_id: int | None = None,
        bbox: BBox | None = None,
    ) -> None:
        """Note something that is refused; `where` may be empty, `got` is shortened."""
        place = f"{self.source}: {where}" if where else self.source
        self.faults.append(f"{place}: expected {expected}, got {printable(got)}. {remedy}")
        self.count(kind, where or "the file", image_id, bbox)

    def count(
        self,
        kind: str,
        where: str,
        image_id: int | None = None,
        bbox: BBox | None = None,
        twin: Path | None = None,
    ) -> None:
        """Count something of a `kind`; the first places are kept."""
        assert kind in KINDS, kind
        self._counts[kind] = self._counts.get(kind, 0) + 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < self.max_examples:
            examples.append(Example(where, image_id, bbox, twin))

    def num_counted(self, kind: str) -> int:
        """Return how often `kind` was counted."""
        return self._counts.get(kind, 0)

    @property
    def found(self) -> tuple[Finding, ...]:
        """What was found, in the order of the kinds."""
        return tuple(
            Finding(name, kind.policy, kind.what, self._counts[name], tuple(self._examples[name]))
            for name, kind in KINDS.items()
            if name in self._counts
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of thing that was put right or is odd: how often, what, where first."""
        told = (Policy.REPAIR, Policy.WARN)
        return tuple(f"{self.source}: {finding}" for finding in self.found if finding.policy in told)

    def raise_faults(self) -> None:
        """Raise DatasetError with the first faults and how many more there are, if there are any."""
        raise_faults(self.faults)


def raise_faults(faults: Iterable[str]) -> None:
    """Raise DatasetError with the first ten of `faults` and how many more there are, if there are any."""
    lines = list(faults)
    if len(lines) > MAX_FAULTS_SHOWN:
        lines = [*lines[:MAX_FAULTS_SHOWN], f"… and {len(lines) - MAX_FAULTS_SHOWN} more faults."]
    if lines:
        raise DatasetError("\n".join(lines))


def shorten(values: Sequence[object], num_shown: int = 10) -> str:
    """Return the first values, separated by commas, and an ellipsis where there are more."""
    return ", ".join(map(printable, values[:num_shown])) + (", …" if len(values) > num_shown else "")


def printable(value: object) -> str:
    """Return `value` as text that is safe to print: not endless, and without control characters."""
    text = _text(value)
    return escape(text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "…")


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "an integer of thousands of digits"
    except RecursionError:
        return "a value nested too deeply to print"
