"""A run that is interrupted anywhere and goes on from a file ends with the same bits, whatever the schedule."""

import io

import pytest
import torch

from sparsedet.sparsity import Cubic, Dynamic, LevelWise, OneShot, Sparsifier, SparsityConfig

STEPS = 9
CONFIGS = {
    "level_wise": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6, 0.8))),
    "one_shot": SparsityConfig(schedule=OneShot(sparsity=0.7)),
    "cubic": SparsityConfig(schedule=Cubic(sparsity=0.8, initial=0.1, last=0.9), update_interval=2),
    "dynamic": SparsityConfig(schedule=Dynamic(sparsity=0.7, drop_fraction=0.6, stop=1.0), update_interval=2),
    "soft cubic": SparsityConfig(schedule=Cubic(sparsity=0.8, last=0.9), update_interval=2, keep_pruned_values=True),
    "soft one_shot": SparsityConfig(
        schedule=OneShot(sparsity=0.7), mask_update="every_k_steps", update_interval=2, keep_pruned_values=True
    ),
    "soft levels": SparsityConfig(schedule=LevelWise(levels=(0.4, 0.8)), keep_pruned_values=True),
    "keep_zeros": SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6)), keep_zeros=True),
}


class Run:
    def __init__(self, net, config):
        self.net = net
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
        self.sparsifier = Sparsifier(net, config)
        self.sparsifier.attach(self.optimizer)
        self.changed = []

    def go(self, loss, start, end):
        for step in range(start, end):
            if self.sparsifier.before_step(step, STEPS):
                self.changed.append(step)
            self.optimizer.zero_grad()
            loss(self.net, step).backward()
            self.optimizer.step()

    def state(self):
        parts = {"net": self.net, "optimizer": self.optimizer, "sparsifier": self.sparsifier}
        stream = io.BytesIO()
        torch.save({key: part.state_dict() for key, part in parts.items()}, stream)
        return stream.getvalue()


@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_bits(kind, fresh_net, loss):
    whole = Run(fresh_net(), CONFIGS[kind])
    whole.go(loss, 0, STEPS)
    expected = torch.load(io.BytesIO(whole.state()))
    for stop in range(1, STEPS):
        first = Run(fresh_net(), CONFIGS[kind])
        first.go(loss, 0, stop)
        state = torch.load(io.BytesIO(first.state()))
        again = Run(fresh_net(), CONFIGS[kind])
        again.sparsifier.load_state_dict(state["sparsifier"])
        again.net.load_state_dict(state["net"])
        again.optimizer.load_state_dict(state["optimizer"])
        again.go(loss, stop, STEPS)
        assert [*first.changed, *again.changed] == whole.changed
        found = torch.load(io.BytesIO(again.state()))
        check_equal(expected, found)


def check_equal(expected, found, path=""):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), path
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), path
        for key, value in expected.items():
            check_equal(value, found[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), path
        for index, value in enumerate(expected):
            check_equal(value, found[index], f"{path}[{index}]")
    else:
        assert expected == found, path
