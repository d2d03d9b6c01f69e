"""MSBench's schedulers for fixed masks: BaseScheduler, whose sparsity a script sets, and AmpereScheduler for 2:4."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench.config import Settings
from sparsedet.benchmark.upstream.msbench.inputs import positional
from sparsedet.benchmark.upstream.msbench.restart import Restart
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import OneShot, Sparsifier, SparsityConfig
from sparsedet.sparsity.weights import unwrap

logger = logging.getLogger(__name__)


class BaseScheduler:
    """Prunes a model to what `update_sparsity_per_layer` says, and keeps it pruned.

    One scheduler prunes one model; any number of schedulers may live in one process. The model is not changed but for
    the zeros in its weights.

    Args:
        settings: what a configuration says.

    Attributes:
        notes: what became of the keys of the configuration that do not mean the same as in MSBench.
    """

    def __init__(self, settings: Settings) -> None:
        self.notes = settings.notes
        self._settings = settings
        self._model: nn.Module | None = None
        self._sparsifier: Sparsifier | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._restart: Restart | None = None
        for note in self.notes:
            logger.info("%s: %s: %s", note.key, note.outcome, note.text)
        if settings.lr_scheduler is not None:
            self.set_lr_scheduler(settings.lr_scheduler)

    # --- MSBench's methods ----------------------------------------------------------------------------------

    def prepare_sparse_model(self, model: nn.Module) -> nn.Module:
        """Choose the weights to prune; nothing is traced, swapped or pruned yet.

        Args:
            model: any module; wrappers (DDP, torch.compile) are seen through.

        Returns:
            The same module.

        Raises:
            ConfigError: the scheduler has another model already, or the optimizer is of another model.
            TargetMatchError: a name that is not to be pruned matches no layer, or nothing is left to prune.
        """
        plain = unwrap(model)
        if self._model is None:
            self._sparsifier = self._choose_weights(plain)
            self._model = plain
            self._attach()
        elif self._model is not plain:
            raise ConfigError(
                "prepare_sparse_model: expected the model that was prepared before, got another one. "
                "Build a scheduler for each model."
            )
        return model

    def set_lr_scheduler(self, lr_scheduler: Any) -> None:
        """Take over an LR scheduler that has not been stepped yet, and its optimizer.

        Args:
            lr_scheduler: see `Restart`.

        Raises:
            ConfigError: its start cannot be had again, or its optimizer is of another model.
        """
        self._restart = Restart(lr_scheduler)
        if self._restart.optimizer is not None:
            self.init_optimizer(self._restart.optimizer)

    def init_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the model pruned after each step of `optimizer`.

        Raises:
            ConfigError: it holds none of the weights that are pruned.
        """
        self._optimizer = optimizer
        self._attach()

    def prune_model(self, model: nn.Module, iteration: int) -> None:
        """Put zeros back where an optimizer that was not handed over moved them; call it after the optimizer's step."""
        sparsifier = self._prepared(model)
        if self._optimizer is None:
            sparsifier.apply_()

    def update_sparsity_per_layer(self, model: nn.Module, sparsity: float) -> None:
        """Prune every layer that is not left out to the same share of its weights.

        Args:
            model: the prepared model.
            sparsity: share of zeros in [0, 1), not below that of before.

        Raises:
            SparseDetError: the sparsity cannot be had.
        """
        before = self._prepared(model).config
        pruned = before.schedule.target_sparsities[0] or 0
        if not pruned <= sparsity < 1:
            raise ConfigError(
                f"sparsity: expected a share of at least {pruned:g} (pruned so far) and below 1, got {sparsity}. "
                "Write 0.5 for 50 %; to go back, start again from an earlier checkpoint."
            )
        kept = {name: getattr(before, name) for name in ("targets", "allocation", "scope", "compensate")}
        self._prune(SparsityConfig(schedule=OneShot(sparsity=sparsity), **kept))

    def export_sparse_model(self, model: nn.Module) -> None:
        """Make sure of the zeros in `model`, the prepared one or a copy; they are there at all times."""
        sparsifier = self._prepared()
        sparsifier.apply_(self._copy(model))

    def export_sparse_onnx(self, model: nn.Module, dummy_input: Any, onnx_name: str | Path) -> Path:
        """Write the model as ONNX.

        Args:
            model: the prepared one or a copy; neither it nor its training flags are changed.
            dummy_input: what its forward is given, see `positional`.
            onnx_name: the file; ``.onnx`` is added where it lacks.

        Returns:
            The file that was written.
        """
        from sparsedet.export import export_onnx

        path = Path(onnx_name)
        path = path if path.suffix == ".onnx" else path.with_name(f"{path.name}.onnx")
        self.export_sparse_model(model)
        plain = unwrap(model)
        export_onnx(plain, positional(plain, dummy_input), path)
        return path

    def compute_sparse_rate(self, model: nn.Module | None = None) -> float:
        """Return the share of zeros in all conv and linear weights as they are now, counted.

        Args:
            model: the prepared one (default) or a copy.
        """
        return self._prepared().measure(self._copy(model)).measured_sparsity

    # --- parts ----------------------------------------------------------------------------------------------

    def _choose_weights(self, model: nn.Module) -> Sparsifier:
        return Sparsifier(model, self._settings.sparsity)

    def _prepared(self, model: nn.Module | None = None) -> Sparsifier:
        """Return the sparsifier; `model` must be the prepared one or hold it.

        Raises:
            ConfigError: no model was prepared, or `model` is another one.
        """
        if self._sparsifier is None:
            raise ConfigError("model: expected a prepared model, got none. Call prepare_sparse_model(model) first.")
        if self._copy(model) is not None:
            raise ConfigError(
                "model: expected the model that was prepared, got another one. Build a scheduler for each model, and "
                "pass the model that prepare_sparse_model returned."
            )
        return self._sparsifier

    @property
    def _plain_model(self) -> nn.Module:
        assert self._model is not None
        return self._model

    def _copy(self, model: nn.Module | None) -> nn.Module | None:
        """Return `model` if it is a copy; None if it is the prepared one, in whatever wrapper."""
        is_ours = model is None or any(module is self._model for module in model.modules())
        return None if is_ours else model

    def _attach(self) -> None:
        if self._sparsifier is not None and self._optimizer is not None:
            self._sparsifier.attach(self._optimizer)

    def _use(self, sparsifier: Sparsifier) -> None:
        """Replace the sparsifier by one of the same model."""
        if self._sparsifier is not None:
            self._sparsifier.detach()
        self._sparsifier = sparsifier
        self._attach()

    def _prune(self, config: SparsityConfig) -> None:
        """Prune by `config`, whose only level holds every weight that is pruned already."""
        sparsifier = Sparsifier(self._plain_model, config)
        sparsifier.load_state_dict({"level": None, "masks": self._prepared().masks})
        sparsifier.prune_(0)
        self._use(sparsifier)


class AmpereScheduler(BaseScheduler):
    """Prunes a model to 2:4 where the optimizer is handed over, and keeps it so."""

    def init_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the masks from the weights as they are now, if that is not done yet, and keep them while it trains.

        Raises:
            ConfigError: no model was prepared, or the optimizer holds none of its weights.
        """
        self._prepared().prune_(0)
        super().init_optimizer(optimizer)

    def _choose_weights(self, model: nn.Module) -> Sparsifier:
        if self._settings.sparsity.needs_profile:
            raise ConfigError(
                "scheduler.kwargs.allow_permutation: expected false, since the network has to be run and "
                "AmpereScheduler is given no input, got true. Call sparsedet.sparsity.permute_channels(model, "
                "example_inputs, NM()) before prepare_sparse_model."
            )
        return super()._choose_weights(model)

    def update_sparsity_per_layer(self, model: nn.Module, sparsity: float) -> None:
        """Refuse it: 2:4 has one sparsity.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"sparsity: expected nothing with AmpereScheduler, whose masks are 2:4, got {sparsity}.")
