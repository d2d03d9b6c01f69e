"""Checkpoints inside a level: how far it has come, and the files that say so."""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedet.common.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.common.errors import CheckpointError
from sparsedet.detection.optimization import CheckpointsConfig

PROGRESS_FOLDER = "progress"


@dataclass
class Standing:
    """How far a level has come, beside weights, masks and optimizer.

    Attributes:
        level: its index.
        step: the next step of the run.
        is_at_target: whether its masks have reached the target, and what follows on that is done.
        ap_after_pruning: AP right after its pruning, None where none was measured.
        ap_after_reestimation: AP with batch norms estimated anew after its pruning, None where none was measured.
        evaluates: whether what follows on reaching the target has begun but is not finished, and has to be done again.
        evaluates_inside: likewise for the evaluation inside the level that is due before `step`.
        best_ap: best AP of the level so far, as its ``best.pt`` has it; None where there is none.
        best_step: the step before which it was measured.
        seconds: wall time spent in it before this process.
    """

    level: int
    step: int
    is_at_target: bool = False
    ap_after_pruning: float | None = None
    ap_after_reestimation: float | None = None
    evaluates: bool = False
    evaluates_inside: bool = False
    best_ap: float | None = None
    best_step: int | None = None
    seconds: float = 0.0


class ProgressFiles:
    """The checkpoints inside levels of one experiment, named after level and step.

    They have the content of a level's checkpoint and the fields of `Standing` under the key ``progress``.

    Args:
        folder: of the experiment.
        config: how often, how many.
        clock: seconds that pass.
    """

    def __init__(self, folder: Path, config: CheckpointsConfig, clock: Callable[[], float] = time.perf_counter) -> None:
        self.folder = folder / PROGRESS_FOLDER
        self.config = config
        self._clock = clock
        self._saved_at = clock()

    def is_due(self, step: int) -> bool:
        """Tell whether a checkpoint is due before `step`."""
        minutes, steps = self.config.every_minutes, self.config.every_steps
        is_time = minutes is not None and self._clock() - self._saved_at >= minutes * 60
        return is_time or (steps is not None and step % steps == 0)

    def save(self, level: int, step: int, content: dict[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest ones.

        Raises:
            StorageError: there is no room; earlier checkpoints stay.
        """
        self._saved_at = self._clock()
        save_checkpoint(self.folder / f"level-{level}-step-{step}.pt", content)
        for path in self.newest_first()[self.config.keep :]:
            path.unlink(missing_ok=True)

    def newest_first(self, first_level: int = 0) -> list[Path]:
        """Return the checkpoints of levels from `first_level` on."""
        found: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("level-*-step-*.pt"):
            if match := re.fullmatch(r"level-(\d+)-step-(\d+)\.pt", path.name):
                found.append((int(match[1]), int(match[2]), path))
        return [path for level, _, path in sorted(found, reverse=True) if level >= first_level]

    def clear(self) -> None:
        """Remove all of them: their level is finished, and the next is counted from now."""
        self._saved_at = self._clock()
        shutil.rmtree(self.folder, ignore_errors=True)


def newest_good(paths: list[Path], warn: Callable[[str], None]) -> Path | None:
    """Return the first checkpoint that can be read; those before it are named and put aside as ``*.damaged``."""
    for path in paths:
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            path.replace(path.with_name(path.name + ".damaged"))
            warn(f"{error} It is put aside, and the one before is used.")
            continue
        return path
    return None


def way_on(paths: list[Path]) -> str:
    """Say what can be done after numbers that are not finite; `paths` are the checkpoints, newest first.

    They are good in that no checkpoint holds such numbers.
    """
    if not paths:
        return "There is no checkpoint yet: with a changed recipe the same command starts anew."
    return (
        f"The last good checkpoint is {paths[0]}. The same command goes on from it, most likely to the same end. A "
        f"changed recipe can start from its weights in another folder: --output NEW --set initial_checkpoint={paths[0]}"
    )
