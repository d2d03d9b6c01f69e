"""Averages of the weights of a pruned model: evaluated and saved masked."""

import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import LevelWise, OneShot, Sparsifier, SparsityConfig

LEVELS = SparsityConfig(schedule=LevelWise(levels=(0.3, 0.7)))
AVERAGES = {
    "swa": AveragedModel,
    "ema": lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_over_levels_is_masked_before_it_is_read(kind, net, loss, holds):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    average = AVERAGES[kind](net)  # begins dense
    schedule = SWALR(optimizer, swa_lr=0.05)
    for step in range(6):
        sparsifier.before_step(step, 6)
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
    assert sparsifier.measure(average).measured_sparsity < 0.69  # what was pruned last is in it still
    sparsifier.apply_(average)
    holds(sparsifier.masks, average.module)
    assert sparsifier.measure(average).measured_sparsity == pytest.approx(0.7, abs=1e-3)
    assert not torch.equal(average.module[5].weight, net[5].weight)
    update_bn([torch.randn(4, 3, 4, 4)], average)
    holds(sparsifier.masks, average.module)
    stream = io.BytesIO()
    torch.save(average.state_dict(), stream)
    stream.seek(0)
    saved = torch.load(stream)
    assert all(not saved[f"module.{name}"][~mask].any() for name, mask in sparsifier.masks.items())
    holds(sparsifier.masks, net)


def test_an_average_made_of_sparse_weights_stays_so(net, loss, holds):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    sparsifier = Sparsifier(net, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.prune_(1)
    average = AveragedModel(net)
    for step in range(3):
        loss(net, step).backward()
        net[5].weight.data.add_(0.1)  # whatever stands there
        optimizer.step()
        average.update_parameters(net)
    holds(sparsifier.masks, average.module)


class Holder(nn.Module):
    """An average as other libraries keep it."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_model_of_other_names_or_shapes_is_refused(net, fresh_net):
    sparsifier = Sparsifier(net, SparsityConfig(schedule=OneShot(sparsity=0.5)))
    sparsifier.prune_(0)
    wide = fresh_net()
    wide[3] = nn.Conv2d(8, 16, 1)
    before = wide[0].weight.clone()
    for other, message in (
        (Holder(fresh_net()), "'0.weight' of .* got none"),
        (wide, r"'3.weight' .*got.*16, 8, 1, 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            sparsifier.apply_(other)
    assert torch.equal(wide[0].weight, before)
    with pytest.raises(ConfigError, match=r"by '0\.weight'"):
        sparsifier.measure(Holder(net))
    sparsifier.apply_(Holder(net).module)
