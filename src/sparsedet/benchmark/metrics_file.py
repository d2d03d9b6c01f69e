"""The lines of ``metrics.jsonl``: what training steps were, and what evaluations between them gave."""

import json
import os
from pathlib import Path
from typing import Any

from sparsedet.common.errors import StorageError
from sparsedet.common.files import write_text
from sparsedet.detection.trainer import StepReport

TIME_KEYS = (
    "images_per_second",
    "data_wait_share",
    "peak_memory_bytes",
    "seconds_left_in_level",
    "seconds_left",
)
"""What depends on the machine, in a line; all else has the same bits however often a run was interrupted."""


class MetricsFile:
    """Appends a line every so many steps, and for each evaluation; the last step of a level has one too.

    Args:
        path: the file.
        every: steps between two lines.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def write(self, step: StepReport, level: int, sparsity: float | None) -> dict[str, Any] | None:
        """Write and return the line of a step, if it has one.

        Args:
            step: what it was.
            level: index of its level.
            sparsity: share of all conv/linear weights that the masks prune; None without masks.

        Raises:
            StorageError: the file cannot be written.
        """
        if (step.step + 1) % self.every and step.step + 1 < step.last_step:
            return None
        line: dict[str, Any] = {
            "step": step.step,
            "level": level,
            "loss": step.loss,
            **step.terms,
            "lr": step.lr,
            "gradient_norm": step.gradient_norm,
            "sparsity": sparsity,
            "images_per_second": round(step.images_per_second, 2),
            "data_wait_share": round(step.data_wait_share, 3),
            "peak_memory_bytes": step.peak_memory_bytes,
            "seconds_left_in_level": round(step.seconds_left_in_level),
            "seconds_left": round(step.seconds_left),
        }
        self._append(line)
        return line

    def evaluation(self, step: int, level: int, ap: float, sparsity: float | None) -> None:
        """Write the line of an evaluation inside a level: it has ``val_ap`` and no loss.

        Args:
            step: the one after which it was made.
            level: index of its level.
            ap: what it gave.
            sparsity: as in `write`.

        Raises:
            StorageError: the file cannot be written.
        """
        self._append({"step": step, "level": level, "val_ap": ap, "sparsity": sparsity})

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self.path}: expected to append metrics, got '{error.strerror or error}'. "
                "Free some disk space or choose another folder with --output."
            ) from error

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint of a later step gets there."""
        if self.path.exists():
            with self.path.open("rb+") as stream:
                os.fsync(stream.fileno())

    def drop_from(self, first_step: int, evaluates: bool = False) -> None:
        """Drop the lines of steps that will be run again, and a half written line.

        Args:
            first_step: of these steps.
            evaluates: whether the evaluation after the step before it comes again, too.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
                if row["step"] < first_step - (evaluates and "val_ap" in row):
                    kept.append(line + "\n")
            except ValueError:
                continue
        write_text(self.path, "".join(kept))
