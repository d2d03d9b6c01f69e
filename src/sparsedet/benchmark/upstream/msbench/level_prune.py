"""MSBench's AmbaLevelPruneScheduler: rising levels of sparsity, each with a table, a file and a fresh learning rate."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench import tables
from sparsedet.benchmark.upstream.msbench.config import Settings
from sparsedet.benchmark.upstream.msbench.inputs import positional
from sparsedet.benchmark.upstream.msbench.scheduler import BaseScheduler, logger
from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.common.files import write_atomically
from sparsedet.common.processes import is_first
from sparsedet.sparsity import Limit, OneShot, Sparsifier, SparsityConfig, Uniform

STATE = {"level", "masks", "table"}


class AmbaLevelPruneScheduler(BaseScheduler):
    """Prunes a model level by level, where `prune_model` is called after the optimizer's step of every iteration.

    Of L levels in T iterations, level i starts at iteration ``int(i * T // L)``: its masks are made after the step of
    that iteration and hold until the next level, and the learning rate starts again. After the last iteration of a
    level its file is written.

    Attributes:
        total_iters: number of iterations that the levels share; may be set until the first of them.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.total_iters = settings.total_iters
        self._level: int | None = None
        self._table: tables.Table | None = None

    @property
    def target_sparsities(self) -> tuple[float, ...]:
        """Target of each level."""
        return tuple(target or 0.0 for target in self._settings.sparsity.schedule.target_sparsities)

    def prune_model(self, model: nn.Module, iteration: int) -> None:
        """Start and end levels; call it once in every iteration, after the optimizer's step.

        Args:
            model: the prepared model, in a wrapper or not.
            iteration: 0-based.

        Raises:
            ConfigError: there are too few iterations, or this one belongs to an earlier level.
            SparseDetError: the sparsity cannot be had, or a file cannot be written.
        """
        sparsifier = self._prepared(model)
        iteration = operator.index(iteration)
        starts, ends = self._starts_and_ends()
        level, before = sum(start <= iteration for start in starts) - 1, self._level
        if level < (before or 0):
            raise ConfigError(
                f"iteration: expected {starts[before or 0]} or later, since level {before} has begun, got {iteration}. "
                "Build a new scheduler to start again."
            )
        if level != before:
            self._start_level(level)
            # A script that goes on in the middle of a level has brought its learning rate along.
            if self._restart is not None and iteration > 0 and (before is not None or iteration in starts):
                self._restart.restart_()
        elif self._optimizer is None:
            sparsifier.apply_()
        if iteration + 1 in ends:
            self._save_level(iteration)

    def update_sparsity_per_layer(self, model: nn.Module, sparsity: float) -> None:
        """Refuse it: the levels say how sparse each layer is.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"sparsity: expected nothing with AmbaLevelPruneScheduler, got {sparsity}. Set sparsity_table, or use "
            "BaseScheduler."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return level, masks and table as plain containers and bool tensors (not copies)."""
        return {"level": self._level, "masks": self._prepared().masks, "table": self._table}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; model, optimizer and LR scheduler have states of their own.

        Raises:
            ConfigError: no model was prepared.
            CheckpointError: the state is no such state, or one of another model or other levels.
        """
        self._prepared()
        if not isinstance(state, Mapping) or set(state) != STATE:
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise CheckpointError(
                f"state: expected the keys {sorted(STATE)}, got {got}. Pass what is under 'scheduler' in a level file."
            )
        level, table = state["level"], state["table"]
        if table is not None and len(table) != len(self.target_sparsities):
            raise CheckpointError(
                f"state: expected one of {len(self.target_sparsities)} levels, got one of {len(table)}. "
                "Use the sparsity_table that it was made with."
            )
        if level is not None:
            sparsifier = Sparsifier(self._plain_model, self._level_config(table[level]))
            sparsifier.load_state_dict({"level": 0, "masks": state["masks"]})
            self._use(sparsifier)
        self._level, self._table = level, table

    # --- parts ----------------------------------------------------------------------------------------------

    def _choose_weights(self, model: nn.Module) -> Sparsifier:
        settings, config = self._settings, self._settings.sparsity
        if not settings.do_sparse_analysis and tables.has_tables(settings.output_dir):
            config = SparsityConfig(targets=config.targets, schedule=config.schedule, allocation=Uniform())
            sparsifier = Sparsifier(model, config)
            self._table = tables.read_tables(settings.output_dir, sparsifier.selection, len(self.target_sparsities))
            logger.info("shares of the layers read from %s", settings.output_dir)
            return sparsifier
        if settings.example_input is not None:
            return Sparsifier(model, config, positional(model, settings.example_input))
        if config.needs_profile and config.input_shape is None:
            raise ConfigError(
                f"scheduler.kwargs: expected default_input_shape or default_input_custom, which {config.needs_profile} "
                "(prun_algo 1) needs, got neither. Write for example default_input_shape: [1, 3, 224, 224]."
            )
        return Sparsifier(model, config)

    def _starts_and_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.total_iters is None:
            raise ConfigError(
                "total_iters: expected the number of iterations, got None. Write it into scheduler.kwargs, or set the "
                "scheduler's attribute total_iters before the first iteration."
            )
        starts = self._settings.sparsity.schedule.boundaries(self.total_iters)
        return starts, (*starts[1:], self.total_iters)

    def _start_level(self, level: int) -> None:
        sparsifier = self._prepared()
        if self._table is None:
            self._table = sparsifier.allocate_levels()
            if is_first():
                tables.write_tables(
                    self._settings.output_dir, self._table, sparsifier.selection, self.target_sparsities
                )
        self._prune(self._level_config(self._table[level]))
        self._level = level
        logger.info(
            "level %d: target sparsity %g, measured %.4f",
            level,
            self.target_sparsities[level],
            self.compute_sparse_rate(),
        )

    def _level_config(self, shares: Mapping[str, float]) -> SparsityConfig:
        """Return what prunes each weight to its share."""
        selection = self._prepared().selection
        limits = {row.name: Limit(fixed=shares[row.name]) for row in selection if row.chosen}
        sizes = {row.name: row.numel for row in selection if row.chosen}
        num_zeros = sum(limit.counts(name, sizes[name])[0] for name, limit in limits.items())
        return SparsityConfig(
            targets=self._settings.sparsity.targets,
            schedule=OneShot(sparsity=num_zeros / sum(sizes.values())),
            allocation=Uniform(),
            scope="chosen",
            limits=limits,
        )

    def _save_level(self, iteration: int) -> None:
        """Write the file of the level that ends with `iteration`."""
        assert self._level is not None
        assert self._table is not None
        sparsifier, target = self._prepared(), self.target_sparsities[self._level]
        sparsifier.apply_()
        if not is_first():
            return
        content = {
            "model": self._plain_model.state_dict(),
            "prune_step": self._level,
            "sparse_matrix": tables.matrix(self._table, sparsifier.selection),
            "desire_index_table": list(range(len(self._table))),
            "iteration": iteration,
            "target_sparsity": target,
            "measured_sparsity": sparsifier.measure().measured_sparsity,
            "scheduler": self.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "lr_scheduler": None if self._restart is None else self._restart.state_dict(),
        }
        path = self._settings.save_dir / f"global_sparse_rate_{target}.pth.tar"
        write_atomically(path, lambda stream: torch.save(content, stream))
        logger.info("%s: measured sparsity %.4f", path, content["measured_sparsity"])
