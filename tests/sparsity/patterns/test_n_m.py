"""N:M masks against NVIDIA's ASP and MSBench's own generator."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.errors import UnsupportedShapeError
from sparsedet.sparsity import NM, check_n_m
from sparsedet.sparsity.patterns import n_m_mask

UNTIED = (
    "conv3x3_16x16", "conv1x1_32x64", "conv7x7_8x16", "conv3x3_24x20_in4not16", "grouped3x3_32x8_g4",
    "linear_64x128", "linear_10x512", "conv1d_16x16x5", "half_zero_linear_16x32",
)  # fmt: skip
TIED = ("int_ties_conv3x3_16x16", "int_ties_linear_32x32", "const_linear_8x16", "zero_linear_8x16")
ASP_RULE = "2:4 (asp) needs out_channels % 8 == 0 and in_channels/groups % 16 == 0, got "
REFUSED = ("conv3x3_8x6_in_not4", "conv7x7_stem_16x3", "dwconv3x3_32x1", "linear_8x18_in_not4")


@pytest.fixture(scope="module")
def asp(golden):
    return golden("asp_masks.npz")


def unpacked(packed, weight):
    return torch.from_numpy(np.unpackbits(packed)[: weight.numel()].astype(bool)).view(weight.shape)


def layer_of(weight):
    """A layer with a weight of that shape."""
    layer = {2: nn.Linear(1, 1), 3: nn.Conv1d(1, 1, 1), 4: nn.Conv2d(1, 1, 1)}[weight.ndim]
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("case", UNTIED)
def test_untied_masks_are_asp_s_bit_for_bit(case, asp, golden):
    weight = torch.from_numpy(asp[f"{case}/weight"])
    assert golden("asp_masks.json")["cases"][case]["results"]["apex:m4n2_1d"]["groups_tied_at_boundary"] == 0
    assert torch.equal(n_m_mask(weight.abs(), 2, 4), unpacked(asp[f"{case}/apex/m4n2_1d"], weight))


@pytest.mark.parametrize("case", TIED)
def test_tied_masks_keep_as_much_as_asp_s_and_the_lower_index(case, asp, golden):
    """Which of equal weights ASP keeps follows the order of a Python set; ours keeps the lower index."""
    weight = torch.from_numpy(asp[f"{case}/weight"])
    facts = golden("asp_masks.json")["cases"][case]["results"]["apex:m4n2_1d"]
    mask = n_m_mask(weight.abs(), 2, 4)
    groups = mask.unflatten(1, (-1, 4))
    assert (groups.sum(2) == 2).all()
    assert float(weight.abs()[mask].double().sum()) == pytest.approx(facts["kept_abs_sum"], rel=1e-6)
    if case.startswith(("const", "zero")):
        assert groups.unbind(2)[0].all()
        assert groups.unbind(2)[1].all()


@pytest.mark.parametrize("case", [*UNTIED[:-3], "linear_10x512", "half_zero_linear_16x32"])
def test_msbench_s_generator_agrees_where_nothing_ties(case, golden):
    masks = golden("magnitude_masks.npz")
    weight = torch.from_numpy(golden("asp_masks.npz")[f"{case}/weight"])
    assert torch.equal(n_m_mask(weight.abs(), 2, 4), unpacked(masks[f"NM/{case}"], weight))


@pytest.mark.parametrize("case", [*UNTIED, *TIED, *REFUSED])
def test_eligibility_is_asp_s(case, asp, golden):
    layer = layer_of(torch.from_numpy(asp[f"{case}/weight"]))
    is_eligible = golden("asp_masks.json")["cases"][case]["asp_eligible_fp32"]
    assert (NM().unserved(layer) is None) == is_eligible
    assert (NM(eligibility="divisible").unserved(layer) is None) == (case not in REFUSED)


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (nn.Linear(32, 10), ASP_RULE + "10 and 32"),
        (nn.Conv2d(3, 8, 3), "2:4 needs in_channels/groups % 4 == 0, got 3"),
        (nn.Conv2d(32, 32, 1, groups=8), ASP_RULE + "32 and 4"),
        (nn.ConvTranspose2d(16, 16, 2), "2:4 does not serve transposed convolutions"),
        (nn.Linear(32, 16), None),
    ],
)  # fmt: skip
def test_the_rule_that_failed_is_named(layer, rule):
    assert NM().unserved(layer) == rule


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (2, 5), (1, 16)])
@pytest.mark.parametrize("top", [2, 10**6])
def test_general_n_m_keeps_the_n_largest_of_each_group(n, m, top):
    rng = np.random.default_rng(m)
    scores = rng.integers(0, top, (3, 2 * m, 2))
    expected = np.zeros(scores.shape, bool)
    for row, group, pixel in np.ndindex(3, 2, 2):
        members = range(group * m, group * m + m)
        best = sorted(members, key=lambda channel: (-scores[row, channel, pixel], channel))[:n]
        expected[row, best, pixel] = True
    mask = n_m_mask(torch.from_numpy(scores).float(), n, m)
    assert torch.equal(mask, torch.from_numpy(expected))


def test_violating_groups_are_counted():
    weight = torch.tensor([[1.0, 2, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    assert check_n_m(weight, 2, 4) == 2
    assert check_n_m(weight, 3, 4) == 1
    assert check_n_m(weight[:, :4].reshape(2, 4, 1, 1), 2, 4) == 0


@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 3, 3), (8,)])
def test_a_shape_that_m_does_not_divide_is_refused(shape):
    message = r"weight: expected a number of input channels \(dim 1\) divisible by m=4, got shape \(8"
    with pytest.raises(UnsupportedShapeError, match=message):
        n_m_mask(torch.zeros(shape), 2, 4)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (0, 4), (1, 1)])
def test_n_and_m_that_make_no_pattern_are_refused(n, m):
    with pytest.raises(ValueError, match=r"n|m"):
        NM(n=n, m=m)


def test_message_of_n_not_below_m():
    with pytest.raises(ValueError, match=r"n: expected less than m=4, got 4. Write for example n: 2, m: 4."):
        NM(n=4)


def test_share_of_zeros_and_label():
    assert (NM().fixed_sparsity, NM().label) == (0.5, "2:4")
    assert (NM(n=1, m=8).fixed_sparsity, NM(n=1, m=8).label) == (0.875, "1:8")
