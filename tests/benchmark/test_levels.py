"""Levels of a run and the learning rates the trainer uses in them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.levels import split_levels
from sparsedet.detection.lr_schedules import Cosine, MultiStep
from sparsedet.detection.optimization import SGD, TrainingConfig
from sparsedet.detection.trainer import Level, Trainer
from sparsedet.sparsity import Lamp, LevelWise, OneShot, SparsityConfig

GOLDEN = json.loads((Path(__file__).parent.parent / "detection" / "golden" / "golden_optimization.json").read_text())[
    "lr_amba_restart"
]
FOUR = (0.3, 0.5, 0.7, 0.9)
SCHEDULES = {  # as UP's files say
    "sparse_retinanet_r18_amba": MultiStep(
        milestones=(8, 11), unit="epoch", warmup=0.0, warmup_epochs=2, warmup_start=0.001
    ),
    "sparse_faster_amba": MultiStep(
        milestones=(8, 11),
        unit="epoch",
        warmup=0.0,
        warmup_steps=500,
        warmup_start="unscaled",
        warmup_shape="exponential",
    ),
}


def level_wise(levels=FOUR, **fields):
    return SparsityConfig(schedule=LevelWise(levels=levels, **fields), allocation=Lamp())


def rates(sparsity, config, num_images):
    """Return level and learning rate of each step."""
    trainer = Trainer(nn.Linear(1, 1), config, num_images, torch.device("cpu"))
    levels = split_levels(sparsity, trainer.total_steps)
    assert levels[0].first_step == 0
    assert levels[-1].last_step == trainer.total_steps
    assert all(one.last_step == other.first_step for one, other in pairwise(levels))
    return [
        (index, trainer.lr(step, level))
        for index, level in enumerate(levels)
        for step in range(level.first_step, level.last_step)
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_united_perceptions_rates_in_levels(name):
    golden = GOLDEN[name]
    config = TrainingConfig(
        epochs=48,
        batch_size=golden["world_size"] * golden["batch_size"],
        forward_batch_size=golden["batch_size"],
        optimizer=SGD(lr=6.25e-5),
        lr_batch_size=1,
        lr_schedule=SCHEDULES[name],
    )
    found = rates(level_wise(up_compat=True), config, golden["iters_per_epoch"] * config.batch_size)
    assert len(found) == 48 * golden["iters_per_epoch"]
    for step, rate in golden["lr_used_at_iter"].items():
        assert found[int(step)][1] == pytest.approx(rate, rel=1e-9), step
    for boundary in golden["level_boundaries"][1:]:  # masks are made where the rate is the new one
        assert found[boundary + 1][0] == found[boundary][0] + 1
        assert found[boundary + 1][1] == pytest.approx(found[1][1])


def test_rates_of_levels_worked_out_by_hand():
    # 11 steps in levels of 5 and 6: each starts again at position 0 with a warm-up of two steps
    config = TrainingConfig(
        steps=11,
        optimizer=SGD(lr=1.0),
        lr_schedule=MultiStep(warmup=0.0, warmup_steps=2, warmup_start=0.5, milestones=(0.5,)),
    )
    found = rates(level_wise((0.3, 0.5)), config, 100)
    assert [level for level, _ in found] == [0] * 5 + [1] * 6
    first, second = [0.5, 1.0, 1.0, 0.1, 0.1], [0.5, 1.0, 1.0, 0.1, 0.1, 0.1]  # halves begin at 2.5 and 3
    assert [rate for _, rate in found] == pytest.approx(first + second)


def test_united_perceptions_cosine_in_levels():
    # The level's last step is at the nominal end: the cosine spans 4 steps, not the 5 of the first level.
    config = TrainingConfig(steps=8, optimizer=SGD(lr=1.0), lr_schedule=Cosine(warmup=0.0, up_compat=True))
    found = rates(level_wise((0.3, 0.5), up_compat=True), config, 100)
    assert [level for level, _ in found] == [0] * 5 + [1] * 3
    half = [(1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert [rate for _, rate in found] == pytest.approx([1.0, *half, 0.0, *half])


def test_runs_of_one_level():
    one_shot = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Lamp())
    assert split_levels(None, 7) == (Level(0, 7),)
    (level,) = split_levels(one_shot, 7)
    assert (level.first_step, level.last_step, level.lr_steps) == (0, 7, range(7))
