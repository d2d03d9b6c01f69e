"""The levels of one experiment; each gives a checkpoint, compact weights, detections, its layers, and a record."""

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from sparsedet.benchmark import analysis
from sparsedet.benchmark.calibration import TrainingBatches, calibration_of, run_detector
from sparsedet.benchmark.checkpoint import CHECKPOINT_FILE, build_detector, num_level_bytes
from sparsedet.benchmark.content import check_content
from sparsedet.benchmark.intervals import intervals
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.level_evaluation import LevelEvaluation
from sparsedet.benchmark.level_files import LevelFiles, LevelResult
from sparsedet.benchmark.level_record import make_record
from sparsedet.benchmark.levels import split_levels
from sparsedet.benchmark.parameters import choose_parameters_
from sparsedet.benchmark.preparation import check_steps, say_learning_rate, warn_of_start
from sparsedet.benchmark.progress import ProgressFiles, Standing, newest_good, way_on
from sparsedet.benchmark.sparsity_callback import SparsityCallback
from sparsedet.benchmark.watching import Watch
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.config import dump
from sparsedet.common.errors import CheckpointError, ConfigError, DatasetError, SparseDetError, StorageError
from sparsedet.common.files import write_json
from sparsedet.common.processes import any_process, from_first, is_first
from sparsedet.common.runtime import require_space
from sparsedet.common.stopping import Stopped
from sparsedet.detection.data.splits import Splits
from sparsedet.detection.guard import TrainingError
from sparsedet.detection.trainer import Level, StepReport, Trainer
from sparsedet.report.record import RECORDS_FILE, Record, append_record
from sparsedet.sparsity import Measurement, Sparsifier, measure, profile_model, reestimate_batch_norm

PERMUTATION_FILE = "permutation.json"


class LevelRunner:
    """Runs the levels of one experiment: trains, evaluates, measures, saves, records.

    A checkpoint holds weights, masks, optimizer state and how far the level has come; data and random numbers depend on
    the seed and the step only. So a run goes on after any step.

    Args:
        job: what to run where.
        splits: images to learn from and to evaluate on.
    """

    def __init__(self, job: Job, splits: Splits) -> None:
        self.recipe = job.recipe
        self.job = job
        self.folder = job.folder
        self.device = job.device
        self.console = job.console
        self.splits = splits
        self.names = job.level_names
        self.model, origin = build_detector(self.recipe, splits.train.coco.categories)
        self.initial_weights = origin[0]
        for line in origin:
            self.console.say(f"{job.name}: initial weights: {line}")
        warn_of_start(job, self.model)
        num_images = len(splits.train)
        check_steps(self.recipe, self.recipe.training.total_steps(num_images))
        self.allocated_sparsity: float | None = None
        self.model.to(self.device)
        chosen = choose_parameters_(self.recipe, self.model, self._inputs)
        for line in chosen.lines:
            self.console.say(f"{job.name}: {line}")
        self.sparsifier = self._sparsifier()
        callback = None
        if self.sparsifier is not None and not self.recipe.dense_control:
            callback = SparsityCallback(self.sparsifier, self._on_pruned)
        self.trainer = Trainer(
            self.model,
            self.recipe.training,
            num_images,
            self.device,
            self.recipe.seed,
            callback,
            lr_factors=chosen.lr_factors,
        )
        self.levels = self._levels()
        self.standing = Standing(0, self.levels[0].first_step)
        self.progress = ProgressFiles(self.folder, self.recipe.training.checkpoints)
        self.watch = Watch(self.recipe, self.folder, job.name, self.console)
        self.evaluation = LevelEvaluation(job, splits, self._stop)
        self.files = LevelFiles(job)
        self._began = time.perf_counter()
        say_learning_rate(job, min(level.num_steps for level in self.levels), self.trainer.steps_per_epoch)
        if callback is not None:
            callback.sparsifier.attach(self.trainer.optimizer)
        self.callback = callback
        num_levels = len(self.names) + self.recipe.training.checkpoints.levels_inside
        need = math.ceil(num_level_bytes(self.model, self.recipe) * num_levels)
        from_first(lambda: require_space(self.folder, need))

    # --- preparation ---------------------------------------------------------------------------------------

    def _sparsifier(self) -> Sparsifier | None:
        if self.recipe.sparsity is None:
            return None
        calibration = calibration_of(self.recipe, self.splits, self.model.stride, self.device)
        sparsifier = Sparsifier(self.model, self.recipe.sparsity, self._inputs(), self.model.run_all, calibration)
        if self.recipe.write_analysis and is_first():
            analysis.write(self.folder / "analysis", analysis.table(sparsifier))
        for row in sparsifier.selection:
            if not row.chosen:
                self.console.say(f"{self.job.name}: {row.name} stays dense: {row.reason}")
        return sparsifier

    def _inputs(self) -> tuple[torch.Tensor]:
        return analysis.example_inputs(self.recipe, self.splits, self.model.stride, self.device)

    def _levels(self) -> tuple[Level, ...]:
        if self.trainer.total_steps == 0:
            return (Level(0, 0),) * len(self.names)
        return split_levels(self.recipe.sparsity, self.trainer.total_steps)

    # --- running -------------------------------------------------------------------------------------------

    def run(self, finished: tuple[Record, ...]) -> None:
        """Run the levels after those of the records `finished`, from the newest checkpoint that can be read.

        Raises:
            Stopped: SIGTERM or Ctrl-C asked for it; the state is saved.
        """
        path = from_first(lambda: newest_good(self._checkpoints(len(finished)), self.console.warn))
        if path is None:
            self._permute()
        else:
            self._restore(path)
        from_first(lambda: self.watch.begin(self.standing.step, self.standing.evaluates_inside))
        try:
            for index in range(self.standing.level, len(self.names)):
                if index > self.standing.level:
                    self.standing = Standing(index, self.levels[index].first_step)
                self._run_level(index)
        except TrainingError as error:
            raise TrainingError(f"{error} {way_on(self._checkpoints(self.standing.level))}") from error
        finally:
            self.watch.end()

    def _checkpoints(self, num_finished: int) -> list[Path]:
        """Return the checkpoints from which the run could go on after so many finished levels, newest first."""
        levels = [self.folder / name / CHECKPOINT_FILE for name in reversed(self.names[:num_finished])]
        return [*self.progress.newest_first(num_finished), *levels]

    def _permute(self) -> None:
        """Reorder the channels, if the pattern asks for it, of the average of the weights as well."""
        report = None if self.callback is None else self.callback.sparsifier.permute_()
        if report is None:
            return
        self.trainer.restart_average()
        if is_first():
            write_json(self.folder / PERMUTATION_FILE, asdict(report))
        self.console.say(f"{self.job.name}: {report.summary}")

    def _restore(self, path: Path) -> None:
        content = check_content(load_checkpoint(path), path)
        data_hash = content.get("data_hash", self.splits.hash)
        if data_hash != self.splits.hash:
            raise ConfigError(
                f"{path}: expected the data this run began with (hash {data_hash}), got other data (hash "
                f"{self.splits.hash}). Choose another folder with --output, or restore it."
            )
        try:
            if self.callback is not None:  # before the weights, which its masks would cut
                self.callback.sparsifier.load_state_dict(content["sparsifier"])
            self.trainer.evaluated_model.load_state_dict(content["model"])
            self.trainer.load_state_dict(content["trainer"])
            progress = Standing(**content["progress"]) if "progress" in content else None
        except SparseDetError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: expected the state of a run of this recipe, got another ({type(error).__name__}). Delete it."
            ) from error
        if progress is not None:
            self.standing = progress
            where = f"step {self.standing.step} in {self.names[self.standing.level]}"
        else:
            self.standing = Standing(content["level"] + 1, content["step"])
            where = f"{self.standing.level} of {len(self.names)} levels finished before"
        self.console.say(f"{self.job.name}: going on: {where}")
        if self.callback is not None and self.callback.sparsifier.level is not None:
            self.allocated_sparsity = self.callback.allocated_sparsity

    def _run_level(self, index: int) -> None:
        level = self.levels[index]
        self._began = time.perf_counter() - self.standing.seconds
        if self.standing.evaluates:
            self._on_pruned()
        if self.standing.evaluates_inside:
            self._evaluate_inside()
        loss = self._train(index, level)
        detections, metrics = self._evaluate_good(level.last_step)
        is_best = self.files.is_best(metrics["ap"], self.standing)
        if is_best:
            self.standing.best_ap, self.standing.best_step = metrics["ap"], level.last_step
        result = LevelResult(
            self._content(index, level.last_step, metrics),
            detections,
            self._measure(),
            self.allocated_sparsity,
            loss,
            level.num_steps,
            is_best,
        )
        from_first(lambda: self._finish(result))

    def _train(self, index: int, level: Level) -> float | None:
        if level.num_steps == 0:
            if self.callback is not None:
                self.callback.sparsifier.prune_(index)
                self._on_pruned()
            return None
        label = f"{self.job.name} {self.names[index]}"
        first_step = self.standing.step
        batches = self.trainer.batches(self.splits.train, range(first_step, level.last_step))
        with self.console.training(label, self.recipe.training.log_every, self._suite_seconds) as show:
            self.trainer.report = self._after_step(show)
            try:
                return self.trainer.train(level, batches, None if first_step == level.first_step else first_step)
            except DatasetError:
                if self.trainer.passes_per_step == 1:  # the step that lacks its images has not changed anything yet
                    self._save_progress()
                raise

    def _suite_seconds(self, step: StepReport) -> float | None:
        if self.job.remaining is None:
            return None
        return self.job.remaining.seconds(self.job.name, step, len(self.splits.train))

    def _after_step(self, show: Callable[[StepReport, float], None]) -> Callable[[StepReport], None]:
        def report(step: StepReport) -> None:
            show(step, self.allocated_sparsity or 0.0)
            if is_first():
                self.watch.step(step, self.standing.level, self.allocated_sparsity)
            self.standing.step = step.step + 1
            if self.evaluation.is_due(self.standing.step, self.levels[self.standing.level]):
                self._evaluate_inside()
            is_due, stops = any_process(
                is_first() and self.progress.is_due(self.standing.step), self.job.stop.number is not None
            )
            if stops:
                self._stop()
            elif is_due:
                self._save_progress()

        return report

    def _save_progress(self) -> bool:
        """Save the state inside a level; tell whether there was room. Without, training goes on."""
        self.trainer.check_state(self.standing.step)
        standing = replace(self.standing, seconds=time.perf_counter() - self._began)
        content = self._content(standing.level, standing.step, {})
        content |= {"progress": asdict(standing), "data_hash": self.splits.hash}
        if not is_first():
            return True
        try:
            self.watch.sync()
            self.progress.save(standing.level, standing.step, content)
        except StorageError as error:
            self.console.warn(f"no checkpoint at step {standing.step}: {error}")
            return False
        return True

    def _stop(self) -> NoReturn:
        number = self.job.stop.number or signal.SIGTERM  # where another process was asked
        place = "here" if self._save_progress() else "the last checkpoint"
        raise Stopped(
            f"stopped by {signal.Signals(number).name} before step {self.standing.step} of {self.job.name}: "
            f"the same command goes on from {place}",
            number,
        )

    def _on_pruned(self) -> None:
        assert self.callback is not None
        self.callback.before_evaluate(self.trainer.evaluated_model)
        self.allocated_sparsity = self.callback.allocated_sparsity
        if self.callback.updates_weights:
            self.trainer.restart_average()
        if self.standing.is_at_target or not self.callback.is_at_target:
            return
        self.standing.evaluates = True
        is_evaluated, num_batches = self.recipe.evaluation.after_pruning, self.recipe.reestimate_batch_norm
        if is_evaluated and self.standing.ap_after_pruning is None:
            self.standing.ap_after_pruning = self._evaluate()[1]["ap"]
        if num_batches is not None:
            self._reestimate_batch_norm(num_batches)
            self.standing.ap_after_reestimation = self._evaluate()[1]["ap"] if is_evaluated else None
        self.standing.evaluates, self.standing.is_at_target = False, True

    def _reestimate_batch_norm(self, num_batches: int) -> None:
        """Estimate the statistics anew in the trained model and in the average of its weights."""
        batches = TrainingBatches(self.recipe, self.splits, self.model.stride, self.device)
        for model in dict.fromkeys((self.model, self.trainer.evaluated_model)):
            reestimate_batch_norm(model, islice(batches, num_batches), run_detector)

    # --- evaluation ----------------------------------------------------------------------------------------

    def _evaluate(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        return self.evaluation.run(self.trainer.evaluated_model)

    def _evaluate_good(self, step: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Evaluate what would be saved before `step`: finite, with exact zeros."""
        self.trainer.check_state(step)
        if self.callback is not None:
            self.callback.before_evaluate(self.trainer.evaluated_model)
        return self._evaluate()

    def _evaluate_inside(self) -> None:
        """Evaluate inside the level, before its next step, and keep the best checkpoint; training is not changed."""
        standing = self.standing
        standing.evaluates_inside = True
        metrics = self._evaluate_good(standing.step)[1]
        ap, words = metrics["ap"], ""
        is_at_target = self.callback is None or standing.is_at_target  # with fewer zeros AP is higher
        if is_at_target and self.files.is_best(ap, standing):
            content = self._content(standing.level, standing.step, metrics)
            if self.files.save_best(content):
                standing.best_ap, standing.best_step = ap, standing.step
                words = ", the best of the level so far"
        standing.evaluates_inside = False
        if is_first():
            self.watch.evaluation(standing.step - 1, standing.level, ap, self.allocated_sparsity)
        label = f"{self.job.name} {self.names[standing.level]}"
        self.console.say(f"  {label} step {standing.step}/{self.trainer.total_steps} AP {ap:.3f}{words}")

    # --- results -------------------------------------------------------------------------------------------

    def _measure(self) -> Measurement:
        model = self.trainer.evaluated_model
        if self.callback is not None:
            return self.callback.sparsifier.measure(model)
        return measure(model, profile=profile_model(model, self._inputs(), model.run_all))

    def _content(self, index: int, step: int, metrics: dict[str, float]) -> dict[str, Any]:
        """Return all that is needed to go on at `step`; all processes have to call it."""
        return {
            "experiment": self.job.name,
            "recipe": json.dumps(dump(self.recipe)),
            "categories": [[category.id, category.name] for category in self.splits.train.coco.categories],
            "level": index,
            "step": step,
            "metrics": metrics,
            "model": self.trainer.evaluated_model.state_dict(),
            "sparsifier": self.callback.sparsifier.state_dict() if self.callback is not None else None,
            "trainer": self.trainer.state_dict(),
        }

    def _finish(self, result: LevelResult) -> None:
        """Write the files of a level, then the record, with which it is finished."""
        self.files.write(result)
        truth = self.splits.val.coco.ground_truth()
        record = make_record(
            self.job,
            self.standing,
            result,
            sureness=intervals(truth, result.detections, self.folder.parent, self.job.name, self.splits.hash),
            seconds=time.perf_counter() - self._began,
            initial_weights=self.initial_weights,
            data_hash=self.splits.hash,
        )
        append_record(self.folder / RECORDS_FILE, record)
        self.progress.clear()
        self.console.record(record)
        self.watch.level(record, result.content["step"])
