"""The levels of one experiment; each gives a checkpoint, compact weights, detections, its layers, and a record."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark import analysis
from sparsedet.benchmark.calibration import TrainingBatches, calibration_of, run_detector
from sparsedet.benchmark.checkpoint import CHECKPOINT_FILE, build_detector, num_level_bytes
from sparsedet.benchmark.compact import WEIGHTS_FILE, write_compact
from sparsedet.benchmark.intervals import DETECTIONS_FILE, intervals
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.levels import split_levels
from sparsedet.benchmark.sparsity_callback import SparsityCallback
from sparsedet.common.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.common.config import dump
from sparsedet.common.errors import ConfigError
from sparsedet.common.files import write_json
from sparsedet.common.runtime import environment, writable_folder
from sparsedet.detection.data.loader import train_loader, val_loader
from sparsedet.detection.data.splits import Splits
from sparsedet.detection.evaluation import evaluate, write_results
from sparsedet.detection.inference import detect
from sparsedet.detection.trainer import Level, StepReport, Trainer
from sparsedet.export.compact import num_dense_bytes
from sparsedet.report.record import RECORDS_FILE, Record, append_record
from sparsedet.sparsity import Measurement, Sparsifier, measure, profile_model, reestimate_batch_norm

METRICS_FILE = "metrics.jsonl"
LAYERS_FILE = "layers.json"
PERMUTATION_FILE = "permutation.json"


class LevelRunner:
    """Runs the levels of one experiment: trains, evaluates, measures, saves, records.

    A checkpoint holds weights, masks and optimizer state, so that a run goes on after any finished level.

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
        if self.recipe.sparsity is not None and self.recipe.initial_checkpoint is None:
            self.console.warn(
                "pruning starts without a trained detector; set initial_checkpoint to start from a dense one"
            )
        self._warn_of_zeros()
        num_images = len(splits.train)
        self._check_steps(self.recipe.training.total_steps(num_images))
        self.is_at_target = False  # whether the masks of the level have reached its target
        self.ap_after_pruning: float | None = None
        self.ap_after_reestimation: float | None = None
        self.allocated_sparsity: float | None = None
        self.sparsifier = self._sparsifier()
        callback = None
        if self.sparsifier is not None and not self.recipe.dense_control:
            callback = SparsityCallback(self.sparsifier, self._on_pruned)
        self.trainer = Trainer(self.model, self.recipe.training, num_images, self.device, self.recipe.seed, callback)
        self.levels = self._levels()
        self._say_learning_rate()
        if callback is not None:
            callback.sparsifier.attach(self.trainer.optimizer)
        self.callback = callback
        is_soft = callback is not None and callback.sparsifier.config.keep_pruned_values
        need = num_level_bytes(self.model, self.trainer.average is not None, is_soft) * len(self.names)
        writable_folder(self.folder, need)

    # --- preparation ---------------------------------------------------------------------------------------

    def _check_steps(self, total_steps: int) -> None:
        expected = self.recipe.expected_steps
        if expected is not None and expected != total_steps:
            raise ConfigError(
                f"expected_steps: expected {expected} steps, got {total_steps} from training.steps or epochs. "
                "Make them equal."
            )

    def _warn_of_zeros(self) -> None:
        zeros = measure(self.model).measured_sparsity
        if zeros >= 0.2 and (self.recipe.sparsity is None or not self.recipe.sparsity.keep_zeros):
            self.console.warn(
                f"{zeros:.0%} of the initial weights are zero, and training fills them; sparsity.keep_zeros keeps them"
            )

    def _sparsifier(self) -> Sparsifier | None:
        if self.recipe.sparsity is None:
            return None
        calibration = calibration_of(self.recipe, self.splits, self.model.stride, self.device)
        sparsifier = Sparsifier(
            self.model.to(self.device), self.recipe.sparsity, self._inputs(), self.model.run_all, calibration
        )
        if self.recipe.write_analysis:
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

    def _say_learning_rate(self) -> None:
        training, shortest = self.recipe.training, min(level.num_steps for level in self.levels)
        if training.lr_batch_size is not None:
            self.console.say(
                f"{self.job.name}: learning rate {training.optimizer.lr * training.lr_scale:g} = "
                f"{training.optimizer.lr / training.lr_batch_size:g} x {training.batch_size} images"
            )
        num_warmup = training.lr_schedule.num_warmup_steps(shortest, self.trainer.steps_per_epoch)
        if num_warmup > shortest > 0:
            self.console.warn(
                f"the warm-up ({num_warmup} steps) is longer than a level ({shortest} steps), which therefore ends "
                "before the learning rate has reached its peak"
            )

    # --- running -------------------------------------------------------------------------------------------

    def run(self, finished: tuple[Record, ...]) -> None:
        """Run the levels after those of the records `finished`."""
        if finished:
            self._restore(self.folder / finished[-1].folder / CHECKPOINT_FILE)
            self.console.say(f"{self.job.name}: {len(finished)} of {len(self.names)} levels finished before, going on")
        else:
            self._permute()
        for index in range(len(finished), len(self.names)):
            self._run_level(index)

    def _permute(self) -> None:
        """Reorder the channels, if the pattern asks for it, of the average of the weights as well."""
        report = None if self.callback is None else self.callback.sparsifier.permute_()
        if report is None:
            return
        self.trainer.restart_average()
        write_json(self.folder / PERMUTATION_FILE, asdict(report))
        self.console.say(f"{self.job.name}: {report.summary}")

    def _restore(self, path: Path) -> None:
        content = load_checkpoint(path)
        if self.callback is not None:  # before the weights, which its masks would cut
            self.callback.sparsifier.load_state_dict(content["sparsifier"])
        self.trainer.evaluated_model.load_state_dict(content["model"])
        self.trainer.load_state_dict(content["trainer"])
        _drop_later_lines(self.folder / METRICS_FILE, content["step"])

    def _run_level(self, index: int) -> None:
        began = time.perf_counter()
        level = self.levels[index]
        self.is_at_target, self.ap_after_pruning, self.ap_after_reestimation = False, None, None
        loss = self._train(index, level)
        if self.callback is not None:
            self.callback.before_evaluate(self.trainer.evaluated_model)
        results, metrics = self._evaluate()
        measurement = self._measure()
        folder = self.folder / self.names[index]
        write_results(folder / DETECTIONS_FILE, results)
        truth = self.splits.val.coco.ground_truth()
        sureness = intervals(truth, results, self.folder.parent, self.job.name, self.splits.hash)
        write_json(folder / LAYERS_FILE, analysis.layer_rows(measurement))
        self._save(folder, index, metrics, measurement.measured_sparsity)
        record = self._record(index, metrics, measurement, loss, time.perf_counter() - began, sureness)
        append_record(self.folder / RECORDS_FILE, record)
        self.console.record(record)

    def _train(self, index: int, level: Level) -> float | None:
        if level.num_steps == 0:
            if self.callback is not None:
                self.callback.sparsifier.prune_(index)
                self._on_pruned()
            return None
        label = f"{self.job.name} {self.names[index]}"
        config = self.recipe.training
        batches = train_loader(
            self.splits.train,
            config.images_per_pass,
            level.steps,
            self.model.stride,
            config.passes_per_step,
            config.num_workers,
        )
        with (
            (self.folder / METRICS_FILE).open("a") as metrics,
            self.console.training(label, config.log_every) as show,
        ):
            self.trainer.report = self._step_reporter(metrics.write, show)
            return self.trainer.train(level, batches)

    def _step_reporter(
        self, write: Callable[[str], object], show: Callable[[StepReport, float], None]
    ) -> Callable[[StepReport], None]:
        every = self.recipe.training.log_every

        def report(step: StepReport) -> None:
            show(step, self.allocated_sparsity or 0.0)
            if (step.step + 1) % every == 0 or step.step + 1 == step.total_steps:
                line = {
                    "step": step.step,
                    "loss": step.loss,
                    **step.terms,
                    "lr": step.lr,
                    "gradient_norm": step.gradient_norm,
                    "images_per_second": round(step.images_per_second, 2),
                }
                write(json.dumps(line) + "\n")

        return report

    def _on_pruned(self) -> None:
        assert self.callback is not None
        self.callback.before_evaluate(self.trainer.evaluated_model)
        self.allocated_sparsity = self.callback.allocated_sparsity
        if self.callback.updates_weights:
            self.trainer.restart_average()
        if self.is_at_target or not self.callback.is_at_target:
            return
        self.is_at_target = True
        is_evaluated = self.recipe.evaluation.after_pruning
        if is_evaluated:
            self.ap_after_pruning = self._evaluate()[1]["ap"]
        if self.recipe.reestimate_batch_norm is not None:
            self._reestimate_batch_norm(self.recipe.reestimate_batch_norm)
            self.ap_after_reestimation = self._evaluate()[1]["ap"] if is_evaluated else None

    def _reestimate_batch_norm(self, num_batches: int) -> None:
        """Estimate the statistics anew in the trained model and in the average of its weights."""
        batches = TrainingBatches(self.recipe, self.splits, self.model.stride, self.device)
        for model in dict.fromkeys((self.model, self.trainer.evaluated_model)):
            reestimate_batch_norm(model, islice(batches, num_batches), run_detector)

    def _evaluate(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        evaluation = self.recipe.evaluation
        batches = val_loader(
            self.splits.val, evaluation.batch_size, self.model.stride, self.recipe.training.num_workers
        )
        coco = self.splits.val.coco
        model = self.trainer.evaluated_model
        results = detect(model, batches, coco.category_ids, self.device, self.recipe.training.precision)
        return results, evaluate(coco.ground_truth(), results, evaluation.evaluator)

    # --- results -------------------------------------------------------------------------------------------

    def _measure(self) -> Measurement:
        model = self.trainer.evaluated_model
        if self.callback is not None:
            return self.callback.sparsifier.measure(model)
        return measure(model, profile=profile_model(model, self._inputs(), model.run_all))

    def _save(self, folder: Path, index: int, metrics: dict[str, float], sparsity: float) -> None:
        """Write the compact file, then the checkpoint, which says that the level is finished."""
        content = {
            "experiment": self.job.name,
            "recipe": json.dumps(dump(self.recipe)),
            "categories": [[category.id, category.name] for category in self.splits.train.coco.categories],
            "level": index,
            "step": self.levels[index].last_step,
            "metrics": metrics,
            "model": self.trainer.evaluated_model.state_dict(),
            "sparsifier": self.callback.sparsifier.state_dict() if self.callback is not None else None,
            "trainer": self.trainer.state_dict(),
        }
        write_compact(folder / WEIGHTS_FILE, content, sparsity)
        save_checkpoint(folder / CHECKPOINT_FILE, content)

    def _record(
        self,
        index: int,
        metrics: dict[str, float],
        measured: Measurement,
        loss: float | None,
        seconds: float,
        sureness: dict[str, Any],
    ) -> Record:
        is_pruned = self.callback is not None
        return Record(
            experiment=self.job.name,
            family=self.job.family,
            label=self.job.label,
            scheduler=self.recipe.scheduler,
            pattern=self.recipe.pattern,
            budget=self.recipe.budget,
            allocation=self.recipe.allocation,
            level=None if self.recipe.sparsity is None else index,
            num_levels=len(self.names),
            target_sparsity=self.recipe.target_sparsities[index] if is_pruned else None,
            allocated_sparsity=self.allocated_sparsity,
            measured_sparsity=measured.measured_sparsity,
            measured_sparsity_chosen=measured.measured_sparsity_chosen if is_pruned else None,
            macs_kept=measured.macs_kept or 0.0,
            num_macs=measured.num_macs or 0,
            num_parameters=measured.num_parameters,
            num_nonzero=measured.num_nonzero,
            size_bytes_dense=num_dense_bytes(self.trainer.evaluated_model.state_dict()),
            size_bytes_sparse=(self.folder / self.names[index] / WEIGHTS_FILE).stat().st_size,
            ap_after_pruning=self.ap_after_pruning,
            ap_after_reestimation=self.ap_after_reestimation,
            metrics=metrics,
            **sureness,
            loss=loss,
            steps=self.levels[index].num_steps,
            seconds=round(seconds, 2),
            seed=self.recipe.seed,
            published_ap=self.recipe.published_ap[index] if self.recipe.published_ap else None,
            initial_weights=self.initial_weights,
            environment=environment(self.device),
            config_hash=self.recipe.hash(),
            data_hash=self.splits.hash,
            folder=self.names[index],
        )


def _drop_later_lines(path: Path, first_step: int) -> None:
    """Drop the metrics of steps that will be run again, and a half written line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line + "\n")
        except ValueError:
            continue
    path.write_text("".join(kept))
