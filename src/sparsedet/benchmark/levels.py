"""Where the sparsity levels of a run begin and end, and from where their learning rates count."""

from sparsedet.detection.trainer import Level
from sparsedet.sparsity import SparsityConfig


def split_levels(sparsity: SparsityConfig | None, total_steps: int) -> tuple[Level, ...]:
    """Return the levels of a run of `total_steps`; without `sparsity` it is one.

    Raises:
        ConfigError: there are too few steps to give every level at least one.
    """
    if sparsity is None:
        return (Level(0, total_steps),)
    firsts = sparsity.schedule.boundaries(total_steps)
    restarts = sparsity.schedule.restarts(total_steps)
    ends, restart_ends = (*firsts[1:], total_steps), (*restarts[1:], total_steps)
    return tuple(
        Level(first, end, range(restart, restart_end))
        for first, end, restart, restart_end in zip(firsts, ends, restarts, restart_ends, strict=True)
    )
