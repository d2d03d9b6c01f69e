"""The files that a level leaves beside its record."""

from dataclasses import dataclass
from typing import Any

from sparsedet.benchmark import analysis
from sparsedet.benchmark.checkpoint import BEST_FILE, CHECKPOINT_FILE
from sparsedet.benchmark.compact import WEIGHTS_FILE, write_compact
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.progress import Standing
from sparsedet.common.checkpoint import save_checkpoint
from sparsedet.common.errors import StorageError
from sparsedet.common.files import write_json
from sparsedet.common.processes import from_first
from sparsedet.detection.evaluation import write_results
from sparsedet.report.run import DETECTIONS_FILE, LAYERS_FILE
from sparsedet.sparsity import Measurement


@dataclass(frozen=True)
class LevelResult:
    """What the training and the evaluation of a level gave.

    Attributes:
        content: of its checkpoint.
        detections: COCO results on the validation split; empty but in the first process.
        measurement: of the zeros in the evaluated weights.
        allocated_sparsity: share of all conv/linear weights that the masks prune; None without masks.
        loss: mean of its last steps; None where nothing was trained.
        num_steps: optimizer updates.
        is_best: whether its checkpoint is the best of the level, too.
    """

    content: dict[str, Any]
    detections: list[dict[str, Any]]
    measurement: Measurement
    allocated_sparsity: float | None
    loss: float | None
    num_steps: int
    is_best: bool


class LevelFiles:
    """Writes the files of the levels of one experiment."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def is_best(self, ap: float, standing: Standing) -> bool:
        """Tell whether the recipe wants the checkpoint of this AP as the best of its level; of equal ones the last."""
        wants = self._job.recipe.training.checkpoints.keep_best
        return wants and (standing.best_ap is None or ap >= standing.best_ap)

    def save_best(self, content: dict[str, Any]) -> bool:
        """Save the best checkpoint of a level so far, from the first process; tell all whether there was room.

        Without, the one before stays. All processes have to call this alike.
        """

        def save() -> bool:
            try:
                save_checkpoint(self._job.folder / self._job.level_names[content["level"]] / BEST_FILE, content)
            except StorageError as error:
                self._job.console.warn(f"no {BEST_FILE} at step {content['step']}: {error}")
                return False
            return True

        return from_first(save)

    def write(self, result: LevelResult) -> None:
        """Write the files of a level at its end, the checkpoint last.

        Raises:
            StorageError: there is no room.
        """
        content = result.content
        folder = self._job.folder / self._job.level_names[content["level"]]
        write_results(folder / DETECTIONS_FILE, result.detections)
        write_json(folder / LAYERS_FILE, analysis.layer_rows(result.measurement))
        write_compact(folder / WEIGHTS_FILE, content, result.measurement.measured_sparsity)
        if result.is_best:
            save_checkpoint(folder / BEST_FILE, content)
        save_checkpoint(folder / CHECKPOINT_FILE, content)
