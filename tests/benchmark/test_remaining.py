import pytest

from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.remaining import Remaining
from sparsedet.detection.trainer import StepReport

DONE = {"a": 5, "b": 30, "c": 500}


def at(step, images_per_second, batch_size=2):
    """Return what is said of a step of a run of 10."""
    return StepReport(step, 10, 1.0, {}, 1e-3, None, batch_size, 10, images_per_second, 0.0, None)


@pytest.fixture
def recipe(tiny_recipe):
    def load(*overrides):
        return load_recipe(tiny_recipe, overrides).recipe

    return load


def test_steps_of_later_experiments_that_are_not_finished_count(recipe):
    longer = ("training.steps=100", "training.optimizer.lr=0.5", "sparsity={schedule: {type: one_shot, sparsity: 0.5}}")
    epochs = ("training.steps=null", "training.epochs=50", "detector.backbone.weights=imagenet")
    remaining = Remaining({"a": recipe(), "b": recipe(*longer), "c": recipe(*epochs)}, DONE)
    # 20 images: 10 steps an epoch, 500 in all, which were finished before
    assert remaining.seconds("a", at(3, 8.0), 20) == pytest.approx((6 + 70) * 2 / 8)
    assert remaining.seconds("a", at(3, 8.0), 21) == pytest.approx((6 + 70 + 50) * 2 / 8)
    assert remaining.seconds("b", at(9, 4.0), 20) == 0


@pytest.mark.parametrize(
    "other",
    ["training.batch_size=4", "detector.neck.channels=8", "data.pad_multiple=64", "training.optimizer.type=sgd"],
)
def test_what_was_not_measured_is_not_guessed(other, recipe):
    other = recipe(other, "training.steps=100")
    remaining = Remaining({"a": recipe(), "b": other, "c": other}, {"a": 0, "b": 0, "c": 0})
    assert remaining.seconds("a", at(3, 8.0), 20) is None
    assert remaining.seconds("b", at(3, 4.0, 4), 20) == pytest.approx((6 + 100) * 4 / 4)
