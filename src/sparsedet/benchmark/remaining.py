"""How long a suite still takes, from the speed that its experiments have shown in this process."""

from collections.abc import Mapping
from typing import Any

from sparsedet.benchmark.recipe import Recipe
from sparsedet.common.config import dump
from sparsedet.common.files import hash_json
from sparsedet.detection.trainer import StepReport

SPEED_KEYS = ("batch_size", "forward_batch_size", "freeze", "ema", "precision", "max_gradient_norm", "num_workers")
"""Of ``training``, what the time of a step depends on."""


class Remaining:
    """Adds up the steps that are left of experiments run one after another, at the speed of a step.

    An experiment is taken to be as fast as another of the same data and detector, trained in the same way: rates and
    masks hardly change the time of a step.

    Args:
        recipes: by the name of each experiment, in the order in which they are run.
        steps_done: of each, in levels that were finished before.
    """

    def __init__(self, recipes: Mapping[str, Recipe], steps_done: Mapping[str, int]) -> None:
        self._recipes = recipes
        self._steps_done = steps_done
        self._kinds = {name: _kind(recipe) for name, recipe in recipes.items()}
        self._speeds: dict[str, tuple[float, int]] = {}

    def seconds(self, name: str, step: StepReport, num_images: int) -> float | None:
        """Return the time that the steps of this experiment and of all later ones still take.

        What lies between the steps (evaluations, pruning) comes on top. None where nothing like a later one has been
        run yet.

        Args:
            name: of the experiment that runs.
            step: its last one.
            num_images: for training.
        """
        self._speeds[self._kinds[name]] = (step.batch_size / step.images_per_second, num_images)
        names = list(self._recipes)
        total = step.seconds_left
        for later in names[names.index(name) + 1 :]:
            if self._kinds[later] not in self._speeds:
                return None
            step_seconds, images = self._speeds[self._kinds[later]]
            total_steps = self._recipes[later].training.total_steps(images)
            total += max(total_steps - self._steps_done[later], 0) * step_seconds
        return total


def _kind(recipe: Recipe) -> str:
    """Return what experiments have in common whose steps take the same time."""
    data: dict[str, Any] = dump(recipe)
    del data["detector"]["backbone"]["weights"]
    training = [data["training"].get(key) for key in SPEED_KEYS]
    return hash_json([data["data"], data["detector"], recipe.training.optimizer.type, training])
