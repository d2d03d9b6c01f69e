"""What a run checks and says before its first step."""

from torch import nn

from sparsedet.benchmark.job import Job
from sparsedet.benchmark.recipe import Recipe
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import measure


def check_steps(recipe: Recipe, total_steps: int) -> None:
    """Raise ConfigError where the run does not have as many steps as its recipe expects."""
    expected = recipe.expected_steps
    if expected is not None and expected != total_steps:
        raise ConfigError(
            f"expected_steps: expected {expected} steps, got {total_steps} from training.steps or epochs. "
            "Make them equal."
        )


def warn_of_start(job: Job, model: nn.Module) -> None:
    """Warn where a dense start is missing, or where the zeros of the initial weights would be filled."""
    recipe = job.recipe
    if recipe.sparsity is not None and recipe.initial_checkpoint is None:
        job.console.warn("pruning starts without a trained detector; set initial_checkpoint to start from a dense one")
    zeros = measure(model).measured_sparsity
    if zeros >= 0.2 and (recipe.sparsity is None or not recipe.sparsity.keep_zeros):
        job.console.warn(
            f"{zeros:.0%} of the initial weights are zero, and training fills those that no mask holds; "
            "sparsity.keep_zeros keeps them"
        )


def say_learning_rate(job: Job, shortest: int, steps_per_epoch: int) -> None:
    """Say the peak rate with its arithmetic, and warn of a warm-up longer than the `shortest` level (steps)."""
    training = job.recipe.training
    if training.lr_batch_size is not None:
        job.console.say(
            f"{job.name}: learning rate {training.optimizer.lr * training.lr_scale:g} = "
            f"{training.optimizer.lr / training.lr_batch_size:g} x {training.batch_size} images"
        )
    num_warmup = training.lr_schedule.num_warmup_steps(shortest, steps_per_epoch)
    if num_warmup > shortest > 0:
        job.console.warn(
            f"the warm-up ({num_warmup} steps) is longer than a level ({shortest} steps), which therefore ends "
            "before the learning rate has reached its peak"
        )
