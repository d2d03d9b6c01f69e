"""The experiments of a suite one after another: what is tried again, what is left out, what is said at the end."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sparsedet.benchmark.console import Console
from sparsedet.common.errors import DatasetError, ProcessesError, SparseDetError, StorageError
from sparsedet.common.files import write_json
from sparsedet.common.stopping import Stopped

CAN_PASS = (DatasetError, ProcessesError, StorageError)
"""Errors whose cause may have gone a moment later: images that were away, a lost process, a full disk, a lock.

All others come again with the same recipe, data and seed: a wrong recipe, a loss that is not finite.
"""
ERROR_FILE = "error.json"


class SuiteError(SparseDetError):
    """Some experiments of a suite have failed; those that do not start from them are finished."""


class Named(Protocol):
    """What is to be known of an experiment."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def start(self) -> str | None:
        """Name of an earlier one that it starts from."""


def run_cells(cells: Iterable[Named], attempt: Callable[[str], None], console: Console) -> None:
    """Call `attempt` with the name of each experiment, a second time where it fails in a way that can pass.

    An experiment that starts from one that has failed is left out; the others still run.

    Raises:
        SuiteError: some have failed, and there is more than one.
        SparseDetError: the only one has failed.
        Stopped: `attempt` was asked to stop; nothing more is run.
    """
    cells = tuple(cells)
    failures = Failures(cells)
    for cell in cells:
        if failures.leaves_out(cell):
            continue
        try:
            _attempt_twice(cell.name, attempt, console)
        except Stopped:
            raise
        except SparseDetError as error:
            if len(cells) == 1:
                raise
            failures.add(cell.name, error)
            console.warn(f"{cell.name}: {error}")
    failures.check()


class Failures:
    """Which experiments of a suite have failed, and which are left out for it."""

    def __init__(self, cells: tuple[Named, ...]) -> None:
        self._num_cells = len(cells)
        self._reasons: dict[str, str] = {}
        self._num_failed = 0

    def add(self, name: str, error: Exception) -> None:
        """Note that an experiment has failed; only the words are kept, an error would keep its detector in memory."""
        self._reasons[name] = str(error)
        self._num_failed += 1

    def leaves_out(self, cell: Named) -> bool:
        """Tell, and note, whether what `cell` starts from has failed or is left out itself."""
        if cell.start not in self._reasons:
            return False
        self._reasons[cell.name] = f"not run, since it starts from {cell.start}"
        return True

    def check(self) -> None:
        """Raise a SuiteError that lists them, if there are any."""
        if self._reasons:
            lines = "".join(f"\n  {name}: {reason}" for name, reason in self._reasons.items())
            raise SuiteError(
                f"suite: expected all {self._num_cells} experiments to finish, got {self._num_failed} that failed:"
                f"{lines}\nRemove the cause; the same command then goes on with what is not finished."
            )


def _attempt_twice(name: str, attempt: Callable[[str], None], console: Console) -> None:
    try:
        attempt(name)
    except CAN_PASS as error:
        console.warn(f"{name}: {error} It is tried once more, from its last checkpoint.")
    else:
        return
    attempt(name)


def forget_error(folder: Path) -> None:
    """Remove what `note_error` wrote."""
    (folder / ERROR_FILE).unlink(missing_ok=True)


def note_error(folder: Path, error: SparseDetError) -> None:
    """Write why an experiment ended into its folder, for whoever started its process; on a full disk, nothing.

    Of several processes the one with the cause counts, not those that it left alone.
    """
    path = folder / ERROR_FILE
    if isinstance(error, ProcessesError) and path.exists():
        return
    content: dict[str, str | int] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, Stopped):
        content["signal"] = error.exit_code - 128
    with suppress(StorageError):
        write_json(path, content)


def noted_error(folder: Path) -> SparseDetError | None:
    """Return what `note_error` wrote; None where there is nothing."""
    try:
        content = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
        if "signal" in content:
            return Stopped(content["message"], content["signal"])
        types = {kind.__name__: kind for kind in CAN_PASS}
        return types.get(content["type"], SparseDetError)(content["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
