import pytest
import torch


def test_masks_take_a_byte_per_weight_and_other_tools_more(run):
    table, results = run("memory", "--networks", "squeezenet1_1")
    assert len(table) == len(results) + 2
    per_weight = {result["way"]: result["bytes_per_weight"] for result in results}
    assert per_weight["dense"] == 0
    assert per_weight["sparsedet, 50 %"] <= 1
    assert per_weight["sparsedet, 2:4"] <= 1
    # weight_orig, weight_mask and the product; a float mask and nothing else that lives on
    assert per_weight["torch.nn.utils.prune"] == pytest.approx(8, abs=0.1)
    assert per_weight["torch.ao.pruning"] == pytest.approx(4, abs=0.1)


def test_memory_counts_each_storage_once(load):
    live_bytes = load("memory").live_bytes
    before = live_bytes()
    tensor = torch.zeros(1000)
    views = tensor[:10], tensor.view(10, 100)
    assert live_bytes() - before == 4000
    del tensor, views
    assert live_bytes() == before
