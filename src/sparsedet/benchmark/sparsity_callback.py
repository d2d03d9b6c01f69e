"""The sparsifier as a callback of the trainer: the one place where the two meet during training."""

from collections.abc import Callable

from torch import nn

from sparsedet.sparsity import Sparsifier


class SparsityCallback:
    """Prunes as the schedule says and keeps the pruned weights at zero.

    Args:
        sparsifier: attached to the optimizer of the run.
        on_pruned: called right after new masks were made, before the forward pass.
    """

    def __init__(self, sparsifier: Sparsifier, on_pruned: Callable[[], None]) -> None:
        self.sparsifier = sparsifier
        self.on_pruned = on_pruned

    def before_step(self, step: int, total_steps: int) -> None:
        """Make the masks that are due at `step`, if any are."""
        if self.sparsifier.before_step(step, total_steps):
            self.on_pruned()

    def before_evaluate(self, model: nn.Module) -> None:
        """Put exact zeros where the masks say so into `model`: the pruned one, or the average of its weights."""
        self.sparsifier.apply_(model)

    @property
    def is_at_target(self) -> bool:
        """Whether the masks have the sparsity at which their level is evaluated."""
        level, targets = self.sparsifier.level, self.sparsifier.target_sparsities
        return level is not None and self.sparsifier.target_sparsity == targets[level]

    @property
    def updates_weights(self) -> bool:
        """Whether pruning changes the weights that stay, too."""
        return self.sparsifier.config.criterion.updates_weights

    @property
    def allocated_sparsity(self) -> float:
        """Share of all conv/linear weights that the masks prune."""
        num_weights = sum(row.numel for row in self.sparsifier.selection)
        return sum(int((~mask).sum()) for mask in self.sparsifier.masks.values()) / num_weights
