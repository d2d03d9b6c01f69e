"""Training images for what looks at data when a detector is pruned: criteria, and re-estimation of batch norms."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sparsedet.benchmark.recipe import Recipe
from sparsedet.detection.data.loader import Batch, train_loader
from sparsedet.detection.data.splits import Splits
from sparsedet.detection.models import Detector
from sparsedet.sparsity import Calibration

_MANY_STEPS = 2**31


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of a training from its first forward pass on, without end, the same each time they are gone through.

    Attributes:
        recipe: how batches are made up.
        splits: what is trained on.
        stride: what images are padded to a multiple of.
        device: where they go.
    """

    recipe: Recipe
    splits: Splits
    stride: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        training = self.recipe.training
        steps, passes = range(_MANY_STEPS), training.passes_per_step
        for batch in train_loader(self.splits.train, training.images_per_pass, steps, self.stride, passes):
            yield batch.to(self.device)


def run_detector(model: nn.Module, batch: Batch) -> object:
    """Run every layer of a detector on the images of a batch."""
    return cast(Detector, model).run_all(batch.images)


def detector_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of the terms of a detector's loss."""
    detector = cast(Detector, model)
    return torch.stack(list(detector.losses(detector(batch.images), batch.targets).values())).sum()


def calibration_of(recipe: Recipe, splits: Splits | None, stride: int, device: torch.device) -> Calibration | None:
    """Return the data of the recipe's criterion; None if it needs none, or there are no data."""
    if splits is None or recipe.sparsity is None or not recipe.sparsity.criterion.needs_calibration:
        return None
    return Calibration(TrainingBatches(recipe, splits, stride, device), run_detector, detector_loss)
