"""The evaluation of a level on the validation split, by all processes together."""

from collections.abc import Callable
from itertools import chain, takewhile
from typing import Any, NoReturn

from sparsedet.benchmark.job import Job
from sparsedet.common.processes import any_process, from_first, gather, num_processes, rank
from sparsedet.detection.data.loader import val_image_ids, val_loader
from sparsedet.detection.data.splits import Splits
from sparsedet.detection.evaluation import evaluate
from sparsedet.detection.inference import detect
from sparsedet.detection.models import Detector
from sparsedet.detection.trainer import Level


class LevelEvaluation:
    """Evaluates detectors of one experiment; neither their modes nor the global random state change.

    Args:
        job: what is run.
        splits: the images.
        on_stop: called in all processes, between two batches, where one of them was asked to stop.
    """

    def __init__(self, job: Job, splits: Splits, on_stop: Callable[[], NoReturn]) -> None:
        self._job = job
        self._val = splits.val
        self._on_stop = on_stop

    def is_due(self, step: int, level: Level) -> bool:
        """Tell whether to evaluate inside `level` before `step` of the run; its end is evaluated in any case."""
        every = self._job.recipe.evaluation.every_steps
        return every is not None and (step - level.first_step) % every == 0 and step < level.last_step

    def run(self, model: Detector) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Evaluate with all processes; only the first has the detections, all have the numbers."""
        evaluation, training = self._job.recipe.evaluation, self._job.recipe.training
        setting = (self._val, evaluation.batch_size, model.stride)
        batches = val_loader(*setting, training.num_workers, num_processes(), rank())
        wanted = takewhile(lambda _: not self._is_asked_to_stop(), batches)
        own = detect(model, wanted, self._val.coco.category_ids, self._job.device, training.precision)
        if any_process(self._is_asked_to_stop())[0]:
            self._on_stop()
        places = {image_id: place for place, image_id in enumerate(val_image_ids(*setting))}
        results = sorted(chain(*gather(own)), key=lambda result: places[result["image_id"]])
        return results, from_first(lambda: evaluate(self._val.coco.ground_truth(), results, evaluation.evaluator))

    def _is_asked_to_stop(self) -> bool:
        return self._job.stop.number is not None
