"""Statistics of batch norms estimated anew, for weights that have changed without training."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.calibration import call_on_batch, sum_of_counts
from sparsedet.sparsity.distributed import sum_over_processes_
from sparsedet.sparsity.undisturbed import undisturbed
from sparsedet.sparsity.weights import check_initialised, plain_modules, unwrap


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], object]
) -> tuple[str, ...]:
    """Replace running means and variances of batch norms by those of some batches; nothing else changes.

    In these passes a norm uses the statistics of the batch, so that the norms behind it see what they will see; all
    other layers are in eval mode. The new running statistics are the means over all calls (as with ``momentum=None``),
    of all processes in a distributed run, synchronised norms included: no process waits for another within a pass.

    Frozen norms keep their statistics: torchvision's FrozenBatchNorm2d, norms that stay in eval mode when they are
    told to train, and those in eval mode in a model that is in training mode. Norms that no pass calls keep them too.

    Args:
        model: any module; wrappers are seen through.
        batches: what it is run on.
        run: runs the plain model on a batch.

    Returns:
        Names of the norms with new statistics.

    Raises:
        ConfigError: there is no batch or no such norm, a batch is too small or not finite, or `run` fails.

    Source: Li et al., ECCV 2020 (EagleEye, arXiv:2007.02491).
    """
    plain = unwrap(model)
    check_initialised(plain)
    norms: dict[nn.Module, _Statistics] = {}
    for prefix, module in plain_modules(plain):
        if _has_statistics(module):
            norms.setdefault(module, _Statistics(prefix.removesuffix(".")))
    frozen = [module for module in norms if _is_frozen(module, plain)]
    for module in frozen:
        del norms[module]
    if not norms:
        raise ConfigError(
            f"model: expected a batch norm whose statistics may change, got none ({len(frozen)} frozen). "
            "Leave re-estimation out."
        )
    num_batches = 0
    with undisturbed(plain), ExitStack() as stack:
        for module, statistics in norms.items():
            stack.callback(module.register_forward_pre_hook(statistics.record, with_kwargs=True).remove)
        for batch in batches:
            call_on_batch("run", run, plain, batch)
            num_batches += 1
    if sum_of_counts(num_batches) == 0:
        raise ConfigError("batches: expected at least one batch, got none. Give a list or a data loader.")
    return tuple(statistics.name for module, statistics in norms.items() if statistics.store_(module))


@dataclass
class _Statistics:
    """Sums over the calls of one norm."""

    name: str
    sums: Tensor | None = field(default=None)
    num_calls: int = 0

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: have the norm, in eval mode, use the statistics of its input."""
        inputs: Tensor = (args[0] if args else kwargs["input"]).detach()
        values = inputs.float().transpose(0, 1).flatten(1)
        num_values = values.shape[1]
        if num_values < 2:
            raise ConfigError(
                f"batches: expected more than one value for each channel of '{self.name}', got one. "
                "Use larger batches or images."
            )
        variance, mean = torch.var_mean(values, 1, correction=0)
        _set_(module, mean, variance)
        unbiased = variance * num_values / (num_values - 1)
        self.sums = torch.stack([mean, unbiased]) + (0 if self.sums is None else self.sums)
        self.num_calls += 1

    def store_(self, module: nn.Module) -> bool:
        """Set the running statistics of the norm to the means over all calls; tell whether there were any."""
        assert isinstance(module.running_mean, Tensor)
        zeros = module.running_mean.new_zeros(2, len(module.running_mean), dtype=torch.float32)
        sums = zeros if self.sums is None else self.sums
        sum_over_processes_(sums)
        num_calls = sum_of_counts(self.num_calls)
        if num_calls == 0:
            return False
        if not sums.isfinite().all():
            raise ConfigError(f"batches: expected finite inputs of '{self.name}', got inf or NaN. Look at the data.")
        mean, variance = sums / num_calls
        _set_(module, mean, variance)
        return True


def _set_(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    assert isinstance(module.running_mean, Tensor)
    assert isinstance(module.running_var, Tensor)
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _is_frozen(norm: nn.Module, model: nn.Module) -> bool:
    """Tell whether a norm is held in eval mode, by the model's training loop or by itself."""
    was_training = norm.training
    stays_in_eval_mode = not norm.train().training
    norm.train(was_training)
    return stays_in_eval_mode or (model.training and not was_training and norm is not model)
