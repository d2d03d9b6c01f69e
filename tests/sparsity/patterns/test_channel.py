"""Channel masks against MSBench's structured ones."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.sparsity import Channel

CASES = ("conv3x3_16x16", "linear_10x512", "linear_10x10", "conv1x1_20x50", "half_zero_linear_16x32")


@pytest.mark.parametrize("sparsity", ["0.1", "0.3", "0.5", "0.8", "0.95"])
@pytest.mark.parametrize("case", CASES)
def test_msbench_s_l2_masks(case, sparsity, golden):
    """Of as many channels the same go, bit for bit, where nothing ties."""
    masks = golden("magnitude_masks.npz")
    weight = masks[f"{case}/weight"]
    packed = np.unpackbits(masks[f"{case}/structured_p2/{sparsity}"])[: weight.size].astype(bool)
    expected = torch.from_numpy(packed).view(weight.shape)
    num_dead = int((~expected.flatten(1).any(1)).sum())
    scores = torch.from_numpy(weight).abs()
    assert num_dead in range(len(weight) + 1)
    assert torch.equal(Channel().mask(scores, num_dead * Channel().unit(weight.shape)), expected)


def test_pooled_scores_are_those_of_the_filters():
    scores = torch.tensor([[[3.0], [4.0]], [[1.0], [1.0]]])
    assert torch.allclose(Channel().pooled(scores), torch.tensor([[[12.5**0.5]] * 2, [[1.0]] * 2]))


def test_what_is_served():
    assert Channel().unserved(nn.Conv2d(8, 8, 3, groups=8)) is None
    assert Channel().unserved(nn.Linear(4, 1)) is None
    assert Channel().unserved(nn.ConvTranspose1d(4, 4, 2)) == "channel does not serve transposed convolutions"
    assert (Channel().label, Channel().fixed_sparsity, Channel().unit((8, 4, 3, 3))) == ("channel", None, 36)
