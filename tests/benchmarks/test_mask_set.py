import pytest
import torch
from torch import nn


def test_every_way_is_timed(run):
    table, results = run("mask_set", "--networks", "squeezenet1_1", "--rounds", "1")
    assert len(table) == len(results) + 2
    first = [result["way"] for result in results if result["cpu_ratio"]["median"] == 1]
    assert first == ["sparsedet, uniform", "sparsedet", "sparsedet, best"]
    assert len(results) == 6 + 2 + 2


@pytest.mark.parametrize("pattern", ["50 %", "2:4", "2:4 both ways"])
def test_every_way_prunes_half_and_touches_nothing_else(load, pattern):
    for way in load("mask_set").PATTERNS[pattern].values():
        model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 16))
        way(model)()
        weights = [model[layer].weight for layer in (0, 2)]
        num_zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert num_zeros == pytest.approx(16 * 16 * 10 / 2, rel=0.15 if "both" in pattern else 0)
        if pattern != "50 %":
            groups = [weight.movedim(1, -1).reshape(-1, 4) for weight in weights]
            assert all(((group != 0).sum(1) <= 2).all() for group in groups)
        assert torch.all(model[1].weight == 1)


def test_rules_of_msbench_are_those_it_is_known_by(load):
    peers = load("peers")
    weight = torch.tensor([[4.0, -1.0, 3.0, 2.0], [0.5, 0.1, -0.2, 0.3]])
    assert peers.top_k_mask(weight).int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert peers.kthvalue_mask(weight).int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert peers.argsort_mask(weight).int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert peers.argsort_mask(torch.ones(2, 3)).all()
