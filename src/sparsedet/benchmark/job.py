"""What is to be run where: one experiment of a suite."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.recipe import Recipe
from sparsedet.benchmark.remaining import Remaining
from sparsedet.common.stopping import StopRequests


@dataclass(frozen=True)
class Job:
    """One experiment.

    Attributes:
        recipe: what to do.
        name: name of the experiment and of its folder.
        family: heading that its row stands under in a report.
        label: its row in a report.
        folder: folder of the experiment; its layout is described in `report.run`.
        device: where to run.
        console: told about the progress.
        stop: requests to end early.
        remaining: of the suite whose experiments this process runs one after another; None of no suite.
    """

    recipe: Recipe
    name: str
    family: str
    label: str
    folder: Path
    device: torch.device
    console: Console
    stop: StopRequests = field(default_factory=StopRequests)
    remaining: Remaining | None = None

    @property
    def level_names(self) -> tuple[str, ...]:
        """Name of the folder of each level."""
        targets = self.recipe.target_sparsities
        if not targets:
            return ("dense",)
        if self.recipe.dense_control:
            return tuple(f"control-{index}" for index in range(len(targets)))
        kind = "sparsity" if self.recipe.budget == "weights" else "macs"
        return tuple(f"{kind}-{target:g}" for target in targets)
