"""Magnitude criterion."""

import pytest
import torch

from sparsedet.sparsity import Magnitude


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_scores_are_absolute_values_in_float32(dtype):
    weight = torch.tensor([[-2.0, 0.5], [-0.0, 1.0]], dtype=dtype, requires_grad=True)
    scores = Magnitude().scores(weight)
    assert scores.tolist() == [[2.0, 0.5], [0.0, 1.0]]
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert not scores.signbit().any()


def test_weight_is_not_changed():
    weight = torch.tensor([-1.0])
    Magnitude().scores(weight).zero_()
    assert weight.item() == -1
