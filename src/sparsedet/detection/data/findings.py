"""What reading a data set turns up: faults, which end in one error, and warnings, which are counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sparsedet.common.errors import DatasetError

MAX_FAULTS_SHOWN = 10


@dataclass
class Findings:
    """Faults and warnings about one data source.

    Attributes:
        source: the file they are about; every message begins with it.
        faults: full messages: ``<source>: <where>: expected …, got …. <what to do>``.
    """

    source: str
    faults: list[str] = field(default_factory=list)
    _counts: dict[str, list[str]] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    def fault(self, where: str, expected: str, got: object, remedy: str) -> None:
        """Note something that makes the data unusable; `where` may be empty."""
        place = f"{self.source}: {where}" if where else self.source
        self.faults.append(f"{place}: expected {expected}, got {got}. {remedy}")

    def count(self, what: str, where: str) -> None:
        """Note something put right or odd; the same `what` is counted, the first places are shown."""
        self._counts.setdefault(what, []).append(where)

    def num_counted(self, what: str) -> int:
        """Return how often `what` was counted."""
        return len(self._counts.get(what, ()))

    def note(self, message: str) -> None:
        """Note something about the whole source that the user should look at."""
        self._notes.append(message)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of thing counted (how often, what, where first) and for each note."""
        counted = (f"{len(places)} x {what} ({shorten(places, 3)})" for what, places in self._counts.items())
        return tuple(f"{self.source}: {line}" for line in (*counted, *self._notes))

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
    return ", ".join(map(str, values[:num_shown])) + (", …" if len(values) > num_shown else "")
