"""2:4 in both directions against NVIDIA's greedy masks, MSBench's best ones, and a search by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.sparsity import NM2D, check_n_m
from sparsedet.sparsity.patterns import n_m_2d_mask

UNTIED = (
    "conv3x3_16x16", "conv1x1_32x64", "conv7x7_8x16", "conv3x3_24x20_in4not16", "grouped3x3_32x8_g4", "linear_64x128",
)  # fmt: skip
ASP_RULE = "2:4 2-D (asp) needs out_channels % 8 == 0 and in_channels/groups % 16 == 0, got "
BEST = ("conv3x3_16x16", "conv1x1_32x64", "linear_64x128", "int_ties_linear_32x32")


@pytest.fixture(scope="module")
def asp(golden):
    return golden("asp_masks.npz")


def unpacked(packed, weight):
    return torch.from_numpy(np.unpackbits(packed)[: weight.numel()].astype(bool)).view(weight.shape)


def lines(mask):
    """Sums over the rows and over the columns of all 4x4 blocks."""
    blocks = mask.reshape(mask.shape[0] // 4, 4, mask.shape[1] // 4, 4, -1)
    return blocks.sum(1), blocks.sum(3)


@pytest.mark.parametrize("case", [*UNTIED, "const_linear_8x16", "zero_linear_8x16"])
def test_greedy_masks_are_asp_s_bit_for_bit(case, asp):
    """ASP takes constant weights in the order of their index too."""
    weight = torch.from_numpy(asp[f"{case}/weight"])
    assert torch.equal(n_m_2d_mask(weight.abs(), "greedy"), unpacked(asp[f"{case}/apex/m4n2_2d_greedy"], weight))


@pytest.mark.parametrize("case", ["half_zero_linear_16x32", "int_ties_linear_32x32", "int_ties_conv3x3_16x16"])
def test_tied_greedy_masks_are_valid_and_leave_room_as_asp_s_do(case, asp):
    weight = torch.from_numpy(asp[f"{case}/weight"])
    mask = n_m_2d_mask(weight.abs(), "greedy")
    assert max(int(line.max()) for line in lines(mask)) == 2
    assert 0.5 < 1 - float(mask.float().mean()) < 0.52
    theirs = float(weight.abs()[unpacked(asp[f"{case}/apex/m4n2_2d_greedy"], weight)].sum())
    assert float(weight.abs()[mask].sum()) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("case", BEST)
def test_best_masks_keep_what_msbench_s_keep(case, asp, golden):
    weight = torch.from_numpy(asp[f"{case}/weight"])
    facts = golden("asp_masks.json")["m4n2_2d_best"][case]
    mask = n_m_2d_mask(weight.abs())
    assert int((~mask).sum()) == facts["zeros"] == weight.numel() / 2
    assert float(weight.abs()[mask].double().sum()) == pytest.approx(facts["kept_abs_sum"], rel=1e-9)
    if not case.startswith("int_ties"):
        assert torch.equal(mask, unpacked(asp[f"{case}/msbench_plus_reshape/m4n2_2d_best"], weight))
    assert facts["kept_abs_sum"] >= float(weight.abs()[n_m_2d_mask(weight.abs(), "greedy")].sum())


def test_conv1d_has_its_blocks_at_one_kernel_position(asp):
    """ASP's blocks of a Conv1d mix kernel positions and output channels; ours are 2:4 along both kinds of channels."""
    weight = torch.from_numpy(asp["conv1d_16x16x5/weight"])
    expected = torch.stack([n_m_2d_mask(weight[:, :, position].abs(), "greedy") for position in range(5)], dim=2)
    assert torch.equal(n_m_2d_mask(weight.abs(), "greedy"), expected)
    assert not torch.equal(expected, unpacked(asp["conv1d_16x16x5/apex/m4n2_2d_greedy"], weight))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), top=st.sampled_from([2, 4, 10**6]))
def test_best_is_the_best_of_all_blocks(seed, top):
    """Tried one after the other in the order of the indices they keep, of which the first best counts."""
    scores = np.random.default_rng(seed).integers(0, top, (4, 8))
    rows = list(itertools.combinations(range(4), 2))
    expected = np.zeros((4, 8), dtype=bool)
    for start in (0, 4):
        best, best_sum = None, -1
        for pairs in itertools.product(rows, repeat=4):
            block = np.array([[column in pair for column in range(4)] for pair in pairs])
            if (block.sum(0) == 2).all() and scores[:, start : start + 4][block].sum() > best_sum:
                best, best_sum = block, scores[:, start : start + 4][block].sum()
        expected[:, start : start + 4] = best
    assert torch.equal(n_m_2d_mask(torch.from_numpy(scores).float()), torch.from_numpy(expected))


@pytest.mark.parametrize("method", ["best", "greedy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masks_are_valid_both_ways(method, dtype):
    weight = torch.randn(8, 32, 3, 3).to(dtype)
    mask = n_m_2d_mask(weight.float().abs(), method)
    assert check_n_m(weight * mask, 2, 4) == check_n_m((weight * mask).transpose(0, 1), 2, 4) == 0
    if method == "best":
        assert all((line == 2).all() for line in lines(mask))


def test_chunks_do_not_show():
    scores = torch.randint(0, 50, (128, 2048)).float()  # 16384 blocks: two chunks and more
    assert torch.equal(n_m_2d_mask(scores), torch.cat([n_m_2d_mask(part) for part in scores.split(4)]))


@pytest.mark.parametrize("shape", [(6, 8), (8, 6, 3, 3), (8,)])
def test_shapes_that_blocks_do_not_fill_are_refused(shape):
    message = r"weight: expected numbers of output and input channels \(dims 0 and 1\) divisible by 4, got shape \("
    with pytest.raises(UnsupportedShapeError, match=message):
        n_m_2d_mask(torch.zeros(shape))


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (nn.Linear(32, 16), None),
        (nn.Conv2d(64, 32, 3, groups=4), None),
        (nn.Linear(32, 10), "2:4 2-D needs out_channels/groups % 4 == 0, got 10"),
        (nn.Linear(32, 12), ASP_RULE + "12 and 32"),
        (nn.Linear(8, 16), ASP_RULE + "16 and 8"),
        (nn.Conv2d(256, 32, 1, groups=16), "2:4 2-D needs out_channels/groups % 4 == 0, got 2"),
        (nn.ConvTranspose2d(16, 16, 2), "2:4 2-D does not serve transposed convolutions"),
    ],
)  # fmt: skip
def test_the_rule_that_failed_is_named(layer, rule):
    assert NM2D().unserved(layer) == rule


def test_share_of_zeros_and_label():
    assert (NM2D().fixed_sparsity, NM2D().label) == (0.5, "2:4 2-D")
    assert NM2D(method="greedy").label == "2:4 2-D greedy"
