"""Exact +0.0 at pruned entries, whatever stands there and in whatever form."""

import math

import pytest
import torch

from sparsedet.sparsity.masks import Mask

BAD = (math.nan, -math.nan, math.inf, -math.inf, -0.0, 1.5, -1.5, 1e-40)
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.float8_e5m2, torch.complex64, torch.complex128,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruned_entries_become_plus_zero_and_others_stay(dtype):
    tensor = torch.tensor([*BAD, *BAD]).to(dtype)
    before = tensor.clone()
    keep = torch.tensor([False] * len(BAD) + [True] * len(BAD))
    Mask.of(keep).apply_(tensor)
    assert not tensor[: len(BAD)].view(torch.uint8).any()  # every bit is zero, the sign too
    assert torch.equal(tensor[len(BAD) :].view(torch.uint8), before[len(BAD) :].view(torch.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout(layout):
    torch.manual_seed(0)
    keep = torch.rand(4, 6, 3, 3) > 0.5
    tensor = torch.full((4, 6, 3, 3), math.nan).to(memory_format=layout)
    mask = Mask.of(keep)
    mask.apply_(tensor)
    assert torch.equal(tensor.isnan(), keep)
    assert mask.bits.stride() == tensor.stride()
    assert torch.equal(mask.keep, keep)


def test_size_one_dimensions_do_not_make_another_layout():
    mask = Mask.of(torch.ones(8, 4, 1, 1, dtype=torch.bool))
    bits = mask.bits
    mask.apply_(torch.ones(8, 4, 1, 1).to(memory_format=torch.channels_last))
    assert mask.bits is bits


def test_a_tensor_without_memory_leaves_the_mask_as_it_is():
    mask = Mask.of(torch.tensor([True, False]))
    mask.apply_(torch.empty(2, device="meta"))
    assert mask.keep.tolist() == [True, False]


def test_a_parameter_that_needs_gradients_is_changed_in_place():
    parameter = torch.nn.Parameter(torch.ones(3))
    address = parameter.data_ptr()
    Mask.of(torch.tensor([True, False, True])).apply_(parameter)
    assert parameter.tolist() == [1, 0, 1]
    assert parameter.data_ptr() == address
    assert parameter.requires_grad
    assert parameter.grad_fn is None
