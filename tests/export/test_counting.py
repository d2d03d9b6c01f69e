import pytest
import torch

from sparsedet.export.counting import TensorCount, count_tensor


def test_a_weight_worked_by_hand():
    weight = torch.ones(3, 8, 1, 2)
    weight[0] = 0  # a dead output channel
    weight[1, :2, 0, 0] = 0  # one of four groups has two non-zeros left
    weight[1, 4:7, 0, 0] = -0.0  # another one has one
    weight[2, [1, 3, 4, 6]] = 0  # all four
    count = count_tensor("w", weight)
    assert count == TensorCount("w", (3, 8, 1, 2), 48, 16 + 5 + 8, 2, 1)
    assert count.sparsity == 29 / 48


@pytest.mark.parametrize(
    ("shape", "violations"), [((4,), None), ((), None), ((0, 8), None), ((4, 6), None), ((4, 0, 3), None), ((2, 4), 2)]
)
def test_where_there_are_no_groups_of_four(shape, violations):
    count = count_tensor("w", torch.ones(shape))
    assert (count.num_zeros, count.n_m_violations, count.num_dead_channels) == (0, violations, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_other_number_formats(dtype):
    weight = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=dtype)
    assert count_tensor("w", weight) == TensorCount("w", (3, 4), 12, 7, 1, 1)
