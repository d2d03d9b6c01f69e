import pytest
import torch
from torch import nn


def test_a_classifier_and_the_detector_are_trained_dense_and_sparse(run):
    arguments = (
        "--cases",
        "resnet18",
        "demo_detector",
        "--rounds",
        "2",
        "--batch-size",
        "2",
        "--image-size",
        "32",
        "--peers",
    )
    table, results = run("step_overhead", *arguments)
    assert len(table) == 2 + 2  # head, line, two rows
    assert [result["case"] for result in results] == ["resnet18", "demo_detector"]
    assert [result["measured_sparsity"] for result in results] == pytest.approx([0.5, 0.9], abs=1e-5)
    for result in results:
        assert result["cpu_ratio"]["median"] > 0
        assert result["weights_cpu_share"] > 0
        assert result["gradients_cpu_share"] > 0
        assert list(result["peer_cpu_ratios"]) == ["MSBench's rule", "torch.nn.utils.prune", "torch.ao.pruning"]


@pytest.mark.parametrize("peer", ["MSBench's rule", "torch.nn.utils.prune", "torch.ao.pruning"])
def test_peers_compute_with_half_of_the_weights(load, peer):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 6))
    load("step_overhead").PEERS[peer](model)
    model(torch.ones(1, 4, 3, 3))
    assert [int((model[layer].weight == 0).sum()) for layer in (0, 2)] == [4 * 8 * 9 / 2, 8 * 6 / 2]
