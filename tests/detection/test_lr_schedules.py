import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparsedet.detection.lr_schedules import LR_SCHEDULES, Constant, Cosine, MultiStep, whole_part
from sparsedet.detection.optimization import SGD, TrainingConfig

GOLDEN = json.loads((Path(__file__).parent / "golden" / "golden_optimization.json").read_text())["lr"]
RAMP = {"warmup": 0.5, "warmup_start": 0.2}

# --- worked out by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "position", "num_steps", "factor"),
    [
        (Constant(warmup=0.0), 0, 10, 1.0),
        (Constant(**RAMP), 0, 10, 0.2),
        (Constant(**RAMP), 2, 10, 0.6),  # 0.2 + 0.8 * 2 / 4
        (Constant(**RAMP), 4, 10, 1.0),  # the last step of the warm-up has the peak
        (Constant(**RAMP), 5, 10, 1.0),
        (Constant(warmup=0.1, warmup_start=0.2), 0, 10, 0.2),  # a warm-up of one step
        (Constant(warmup=0.1, warmup_start=0.2), 1, 10, 1.0),
        (Constant(warmup=0.3, warmup_start=0.25, warmup_shape="exponential"), 1, 10, 0.5),
        (Constant(warmup=0.0, warmup_steps=3, warmup_start=0.0), 1, 10, 0.5),
        (Constant(warmup=0.0, warmup_steps=21, warmup_start=0.0), 9, 10, 0.45),  # the level ends on the way
        (Constant(warmup=0.29, warmup_start=0.0), 28, 100, 1.0),  # 29 steps, though 0.29 * 100 < 29 in floats
        (Constant(warmup=0.29, warmup_start=0.0), 27, 100, 27 / 28),
        (Cosine(warmup=0.0), 0, 8, 1.0),
        (Cosine(warmup=0.0), 4, 8, 0.5),
        (Cosine(warmup=0.0, final=0.2), 4, 8, 0.6),
        (Cosine(warmup=0.2), 2, 10, 1.0),  # the decay starts after the two steps of warm-up
        (Cosine(warmup=0.2), 9, 10, (1 + math.cos(math.pi * 7 / 8)) / 2),
        (Cosine(warmup=0.2, up_compat=True), 1, 10, 1.0),
        (Cosine(warmup=0.2, up_compat=True), 2, 10, (1 + math.cos(math.pi * 2 / 10)) / 2),
        (Cosine(), 0, 1, 1.0),  # a level of one step has no warm-up
        (Cosine(warmup=0.0, warmup_steps=20), 19, 10, 1.0),
        (Cosine(warmup=0.0, warmup_steps=20), 20, 10, 0.0),  # nothing is left of the cosine
        (MultiStep(warmup=0.0), 6, 10, 1.0),
        (MultiStep(warmup=0.0), 7, 10, 0.1),
        (MultiStep(warmup=0.5), 7, 10, 0.1),  # shares count from the level's start
        (MultiStep(warmup=0.0, milestones=(0.07,)), 7, 100, 0.1),  # though 0.07 * 100 > 7 in floats
        (MultiStep(warmup=0.0, gamma=0.5), 9, 10, 0.25),
        (MultiStep(warmup=0.0, milestones=()), 9, 10, 1.0),
    ],
)
def test_rates_over_the_peak(schedule, position, num_steps, factor):
    assert schedule.lr(position, num_steps, 5, base_lr=0.4) == pytest.approx(0.4 * factor, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "position", "rate"),
    [  # epochs of five steps, a level of 20, optimizer 0.1, scaled by four
        (MultiStep(warmup=0.0, milestones=(1, 2.5), unit="epoch"), 4, 0.4),
        (MultiStep(warmup=0.0, milestones=(1, 2.5), unit="epoch"), 5, 0.04),
        (MultiStep(warmup=0.0, milestones=(1, 2.5), unit="epoch"), 12, 0.04),
        (MultiStep(warmup=0.0, milestones=(1, 2.5), unit="epoch"), 13, 0.004),
        (Cosine(warmup=0.0, epochs=2), 5, 0.2),
        (Cosine(warmup=0.0, epochs=2), 10, 0.0),
        (Cosine(warmup=0.0, epochs=2), 17, 0.0),  # stays there
        (Cosine(warmup=0.0, epochs=2, up_compat=True), 20, 0.4),  # and in UP rises again
        (Cosine(warmup=0.0, epochs=2, final_lr=0.1), 5, 0.25),
        (Cosine(warmup=0.0, epochs=2, final_lr=0.1), 15, 0.1),
        (Cosine(warmup=0.0, warmup_steps=2, epochs=2), 6, 0.2),  # half of the eight steps behind the warm-up
        (Constant(warmup=0.0, warmup_epochs=1, warmup_start="unscaled"), 0, 0.1),
        (Constant(warmup=0.0, warmup_epochs=1, warmup_start="unscaled"), 2, 0.25),
        (Constant(warmup=0.0, warmup_epochs=1, warmup_start="unscaled", warmup_shape="exponential"), 2, 0.2),
        (Constant(warmup=0.1, warmup_steps=3, warmup_epochs=1, warmup_start=0.0), 3, 0.3),  # the longest counts
        (Constant(warmup=0.1, warmup_steps=7, warmup_epochs=1, warmup_start=0.0), 3, 0.2),
        (Constant(warmup=0.45, warmup_steps=7, warmup_epochs=1, warmup_start=0.0), 4, 0.2),
    ],
)
def test_rates_in_epochs_and_scaled_by_the_batch(schedule, position, rate):
    assert schedule.lr(position, 20, 5, base_lr=0.1, scale=4.0) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("schedule", [cls() for cls in LR_SCHEDULES.values()])
def test_rates_stay_between_zero_and_the_peak(schedule):
    for num_steps in (1, 2, 7, 100):
        assert all(0 < schedule.lr(position, num_steps, 3, 0.1) <= 0.1 for position in range(num_steps))


def test_cosine_equals_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for position in range(20):
        assert Cosine(warmup=0.0).lr(position, 20, 5, 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_decimals_count_as_they_are_written():
    assert [whole_part(2.3, 100), whole_part(1.5, 7), whole_part(1e-05, 100000), whole_part(0, 5)] == [230, 10, 1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiStep(milestones=(8, 11)), r"milestones: expected shares of the level in \(0, 1\), got \[8.0, 11"),
        (lambda: Cosine(final=0.1, final_lr=0.01), "expected either 'final' or 'final_lr', got 0.1 and 0.01"),
        (lambda: Cosine(warmup_shape="exponential", warmup_start=0), "warmup_start: expected a factor above 0 for an"),
        (lambda: Constant(warmup_start="unscale"), "Input should be 'unscaled'"),
        (lambda: Constant(warmup_start=1.5), "less than or equal to 1"),
        (lambda: MultiStep(milestones=(0.0,), unit="epoch"), "greater than 0"),
    ],
)
def test_values_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValidationError, match=message):
        make()


# --- United-Perception's own rates -----------------------------------------------------------------------

UP = {"warmup": 0.0, "warmup_start": 0.001}
MULTI_STEP_UP = {**UP, "unit": "epoch"}
SCHEDULES = {  # as UP's files say, with UP's rate per image
    "retinanet_r50_1x": (
        6.25e-4,
        MultiStep(milestones=(8, 11), warmup_epochs=1, warmup_steps=500, **MULTI_STEP_UP),
    ),
    "retinanet_r18_improve": (6.25e-4, MultiStep(milestones=(70, 90), warmup_epochs=2, **MULTI_STEP_UP)),
    "retinanet_r18_improve_cos_iou": (
        6.25e-4,
        Cosine(epochs=100, final_lr=1e-5, warmup_steps=1000, up_compat=True, **UP),
    ),
    "faster_rcnn_r50_fpn_improve": (
        1.25e-3,
        MultiStep(milestones=(70, 90), unit="epoch", warmup=0.0, warmup_epochs=1, warmup_start="unscaled"),
    ),
    "sparse_retinanet_r18_ampere": (6.25e-5, MultiStep(milestones=(8, 11), warmup_epochs=2, **MULTI_STEP_UP)),
    "sparse_faster_ampere": (
        6.25e-5,
        MultiStep(milestones=(14, 18), unit="epoch", warmup=0.0, warmup_epochs=1, warmup_start="unscaled"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_united_perceptions_rates(name):
    golden = GOLDEN[name]
    lr, schedule = SCHEDULES[name]
    config = TrainingConfig(
        epochs=golden["max_iter"] / golden["iters_per_epoch"],
        batch_size=golden["world_size"] * golden["batch_size"],
        forward_batch_size=golden["batch_size"],
        optimizer=SGD(lr=lr),
        lr_batch_size=1,
        lr_schedule=schedule,
    )
    num_images = golden["iters_per_epoch"] * config.batch_size - 3
    num_steps, steps_per_epoch = config.total_steps(num_images), config.steps_per_epoch(num_images)
    assert num_steps == golden["max_iter"]
    assert schedule.num_warmup_steps(num_steps, steps_per_epoch) == golden["warmup_iter"]
    for step, rate in golden["lr_used_at_iter"].items():
        assert config.lr(int(step), num_steps, steps_per_epoch) == pytest.approx(rate, rel=1e-9), step


def test_a_cosine_that_starts_behind_the_warm_up_does_not_drop_there():
    lr, faithful = SCHEDULES["retinanet_r18_improve_cos_iou"]
    native = faithful.model_copy(update={"up_compat": False})
    rates = [native.lr(step, 9100, 91, lr, 32) for step in (999, 1000, 1001, 5050, 9100)]
    assert rates[:2] == pytest.approx([0.02, 0.02], rel=1e-12)
    assert rates[2] < 0.02
    assert rates[3:] == pytest.approx([(0.02 + 1e-5) / 2, 1e-5])
