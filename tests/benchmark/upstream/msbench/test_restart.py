"""LR schedulers that start again: their rates afterwards are those of a new scheduler."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import lr_scheduler as schedulers

from sparsedet.benchmark.upstream.msbench.restart import Restart
from sparsedet.common.errors import ConfigError

KINDS = {
    "step": lambda opt: schedulers.StepLR(opt, 2, 0.5),
    "multi_step": lambda opt: schedulers.MultiStepLR(opt, [2, 5], 0.1),
    "exponential": lambda opt: schedulers.ExponentialLR(opt, 0.7),
    "cosine": lambda opt: schedulers.CosineAnnealingLR(opt, 9),
    "warm_restarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, 4),
    "lambda": lambda opt: schedulers.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "one_cycle": lambda opt: schedulers.OneCycleLR(opt, 1.0, total_steps=20),
    "cyclic": lambda opt: schedulers.CyclicLR(opt, 0.1, 1.0, step_size_up=3),
    "warm_up": lambda opt: schedulers.SequentialLR(
        opt, [schedulers.LinearLR(opt, 0.1, total_iters=3), schedulers.StepLR(opt, 2, 0.5)], milestones=[3]
    ),
    "chained": lambda opt: schedulers.ChainedScheduler([schedulers.LinearLR(opt), schedulers.ExponentialLR(opt, 0.9)]),
    "plateau": lambda opt: schedulers.ReduceLROnPlateau(opt, factor=0.5, patience=1),
}


def optimizer_of(kind):
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": layers[0].parameters(), "lr": 0.4}, {"params": layers[1].parameters()}]
    return torch.optim.SGD(groups, lr=0.8, momentum=0.9)


def run(scheduler, num_steps):
    """Return learning rates and momenta of every step."""
    found = []
    for _ in range(num_steps):
        found.append([(group["lr"], group["momentum"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_of_torch_begins_anew(kind):
    expected = run(KINDS[kind](optimizer_of(kind)), 8)
    scheduler = KINDS[kind](optimizer_of(kind))
    restart = Restart(scheduler)
    assert restart.optimizer is scheduler.optimizer
    assert run(scheduler, 7) == expected[:7]
    for _ in range(2):
        restart.restart_()
        assert run(scheduler, 8) == expected


def test_a_scheduler_in_the_wrapper_of_accelerate_begins_anew():
    expected = run(schedulers.StepLR(optimizer_of("step"), 2, 0.5), 8)
    optimizer = optimizer_of("step")
    _, scheduler = Accelerator(cpu=True).prepare(optimizer, schedulers.StepLR(optimizer, 2, 0.5))
    restart = Restart(scheduler)
    assert restart.optimizer is optimizer
    run(scheduler.scheduler, 7)
    restart.restart_()
    assert run(scheduler.scheduler, 8) == expected


def test_a_rate_that_is_a_tensor_keeps_its_place():
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=torch.tensor(0.5))
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    rate = optimizer.param_groups[0]["lr"]
    restart = Restart(scheduler)
    optimizer.step()
    scheduler.step()
    assert rate.item() == 0.25
    restart.restart_()
    assert rate.item() == 0.5
    assert optimizer.param_groups[0]["lr"] is rate


def test_an_object_that_takes_a_position_is_given_it():
    class Custom:
        def __init__(self):
            self.calls = []

        def step(self, this_iter=None):
            self.calls.append(this_iter)

    scheduler = Custom()
    restart = Restart(scheduler)
    assert restart.optimizer is None
    assert scheduler.calls == []
    restart.restart_()
    assert scheduler.calls == [0]
    assert restart.state_dict() is None


def test_an_object_with_a_state_gets_its_first_one():
    class Custom:
        def __init__(self):
            self.values = [0]

        def step(self):
            self.values[0] += 1

        def state_dict(self):
            return {"values": self.values}

        def load_state_dict(self, state):
            self.values = state["values"]

    scheduler = Custom()
    restart = Restart(scheduler)
    for _ in range(2):
        scheduler.step()
        restart.restart_()
        assert scheduler.values == [0]


def test_what_cannot_begin_anew_is_refused():
    with pytest.raises(ConfigError, match=r"with state_dict and load_state_dict, or step\(this_iter=0\), got object\."):
        Restart(object())
    optimizer = optimizer_of("step")
    scheduler = schedulers.StepLR(optimizer, 2)
    optimizer.step()
    scheduler.step()
    with pytest.raises(ConfigError, match=r"got one at position 1\. Hand it over first, and load its state then\."):
        Restart(scheduler)
