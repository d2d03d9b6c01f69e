import pytest
import torch
from torch import nn


def test_every_way_is_timed(run):
    table, results = run("mask_set", "--networks", "squeezenet1_1", "--rounds", "1")
    assert len(table) == len(results) + 2
    ratios = {result["way"]: result["cpu_ratio"]["median"] for result in results}
    assert ratios.pop("sparsedet, uniform") == 1
    assert len(ratios) == 4
    assert min(ratios.values()) > 0


@pytest.mark.parametrize("index", range(5))
def test_every_way_prunes_half(load, index):
    ways = load("mask_set").WAYS
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6))
    list(ways.values())[index](model)()
    num_zeros = sum(int((model[layer].weight == 0).sum()) for layer in (0, 2))
    assert num_zeros == (4 * 8 * 9 + 8 * 6) / 2
    assert torch.all(model[1].weight == 1)
