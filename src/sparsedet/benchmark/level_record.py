"""The record of a level: what was asked, what came out, and where it came from."""

from typing import Any

from sparsedet.benchmark.compact import WEIGHTS_FILE
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.level_files import LevelResult
from sparsedet.benchmark.progress import Standing
from sparsedet.common.runtime import environment
from sparsedet.export.compact import num_dense_bytes
from sparsedet.report.record import Record


def make_record(
    job: Job,
    standing: Standing,
    result: LevelResult,
    *,
    seconds: float,
    sureness: dict[str, Any],
    initial_weights: str,
    data_hash: str,
) -> Record:
    """Return the record of the level that `standing` is about, whose compact weights are written.

    Args:
        job: what is run.
        standing: how the level has come to its end.
        result: what it gave.
        seconds: wall time of the level.
        sureness: confidence intervals by the names of their fields.
        initial_weights: what the run started from.
        data_hash: of the data.
    """
    recipe, index, measured = job.recipe, standing.level, result.measurement
    folder = job.level_names[index]
    is_pruned = recipe.scheduler != "dense"
    return Record(
        experiment=job.name,
        family=job.family,
        label=job.label,
        scheduler=recipe.scheduler,
        pattern=recipe.pattern,
        budget=recipe.budget,
        allocation=recipe.allocation,
        level=None if recipe.sparsity is None else index,
        num_levels=len(job.level_names),
        target_sparsity=recipe.target_sparsities[index] if is_pruned else None,
        allocated_sparsity=result.allocated_sparsity,
        measured_sparsity=measured.measured_sparsity,
        measured_sparsity_chosen=measured.measured_sparsity_chosen if is_pruned else None,
        macs_kept=measured.macs_kept or 0.0,
        num_macs=measured.num_macs or 0,
        num_parameters=measured.num_parameters,
        num_nonzero=measured.num_nonzero,
        size_bytes_dense=num_dense_bytes(result.content["model"]),
        size_bytes_sparse=(job.folder / folder / WEIGHTS_FILE).stat().st_size,
        ap_after_pruning=standing.ap_after_pruning,
        ap_after_reestimation=standing.ap_after_reestimation,
        best_ap=standing.best_ap if recipe.training.checkpoints.keep_best else None,
        best_step=standing.best_step if recipe.training.checkpoints.keep_best else None,
        metrics=result.content["metrics"],
        **sureness,
        loss=result.loss,
        steps=result.num_steps,
        seconds=round(seconds, 2),
        seed=recipe.seed,
        published_ap=recipe.published_ap[index] if recipe.published_ap else None,
        initial_weights=initial_weights,
        environment=environment(job.device),
        config_hash=recipe.hash(),
        data_hash=data_hash,
        folder=folder,
    )
