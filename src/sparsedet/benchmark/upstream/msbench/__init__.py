"""MSBench's API for sparse training: a script written for MSBench runs after one import is changed.

See docs/from_msbench.md for what is the same and what differs; the meaning of each method is that of
msbench_semantics §5 to §7.
"""

from collections.abc import Mapping
from typing import Any

from sparsedet.benchmark.upstream.msbench.config import read_config
from sparsedet.benchmark.upstream.msbench.level_prune import AmbaLevelPruneScheduler
from sparsedet.benchmark.upstream.msbench.scheduler import AmpereScheduler, BaseScheduler

__all__ = ["SCHEDULERS", "AmbaLevelPruneScheduler", "AmpereScheduler", "BaseScheduler", "build_sparse_scheduler"]

SCHEDULERS: dict[str, type[BaseScheduler]] = {
    "BaseScheduler": BaseScheduler,
    "AmbaLevelPruneScheduler": AmbaLevelPruneScheduler,
    "AmpereScheduler": AmpereScheduler,
}
"""Name in a configuration -> class."""


def build_sparse_scheduler(config: Mapping[str, Any]) -> BaseScheduler:
    """Build a scheduler from MSBench's configuration; the mapping is not changed.

    Args:
        config: ``scheduler``, ``mask_generator``, ``fake_sparse`` and so on, as in the ``sparsity:`` block of a file,
            or with the names that MSBench's ``prepare`` uses (``MaskGeneratorConfig``, ``FakeSparseConfig``).

    Raises:
        ConfigError: a key is unknown, or asks for what is refused; the message names the key and the reason.

    Example:
        >>> import torch
        >>> scheduler = build_sparse_scheduler({"scheduler": {"type": "AmpereScheduler"}})
        >>> model = scheduler.prepare_sparse_model(torch.nn.Linear(16, 8))
        >>> scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> scheduler.compute_sparse_rate(model)
        0.5
    """
    settings = read_config(config)
    return SCHEDULERS[settings.scheduler](settings)
