"""What ends a training run whose numbers are no longer finite, before they get into weights or checkpoints."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsedet.common.errors import SparseDetError

MAX_SKIPPED = 25
"""Steps in a row that the loss scaler may skip: its scale is then a 2^25th of what it was."""


class TrainingError(SparseDetError):
    """Training cannot go on, for example because the loss is not finite."""


class Guard:
    """Checks losses, gradients and weights.

    Args:
        model: detector in training.
        scales_loss: whether a loss scaler skips steps whose gradient is not finite.
    """

    def __init__(self, model: nn.Module, scales_loss: bool) -> None:
        self._model = model
        self._scales_loss = scales_loss
        self._num_skipped = 0

    def check_loss(self, terms: Mapping[str, float], context: str) -> None:
        """Raise TrainingError where a term of the loss is not finite; `context` says step, rate and images."""
        if not all(map(math.isfinite, terms.values())):
            raise TrainingError(
                f"training: expected a finite loss, got {dict(terms)} {context}. "
                "Lower the learning rate, use precision fp32, or look at these images."
            )

    def check_gradient(self, norm: float, context: str) -> bool:
        """Tell whether the norm of the gradient is finite; where it is not, the loss scaler skips the step.

        Raises:
            TrainingError: no loss scaler does, or it did too often in a row.
        """
        is_finite = math.isfinite(norm)
        self._num_skipped = 0 if is_finite else self._num_skipped + 1
        if is_finite or (self._scales_loss and self._num_skipped < MAX_SKIPPED):
            return is_finite
        where = [name for name, one in self._model.named_parameters() if one.grad is not None and _is_wrong(one.grad)]
        in_a_row = f" in {self._num_skipped} steps in a row" if self._scales_loss else ""
        raise TrainingError(
            f"training: expected a finite gradient, got norm {norm}{in_a_row} {context}, first in '{(*where, '-')[0]}' "
            f"of {len(where)} parameters. Lower the learning rate, use precision "
            f"{'bf16' if self._scales_loss else 'fp32'}, or look at these images."
        )

    def check_state(self, step: int, *models: nn.Module) -> None:
        """Raise TrainingError where weights or statistics are not finite before `step`: no checkpoint shall hold them.

        Args:
            step: the next one.
            models: the detector in training, and others such as the average of its weights.
        """
        found = [
            (name, tensor.isfinite().all())
            for model in models
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        ]
        is_finite = torch.stack([each for _, each in found]).tolist()  # at once: a GPU is waited for
        wrong = [name for (name, _), each in zip(found, is_finite, strict=True) if not each]
        if not wrong:
            return
        raise TrainingError(
            f"training: expected finite weights, got inf or NaN in '{wrong[0]}' and {len(wrong) - 1} more before step "
            f"{step}. Lower the learning rate, or set training.max_gradient_norm."
        )


def _is_wrong(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())
