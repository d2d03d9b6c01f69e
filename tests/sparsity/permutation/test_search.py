"""The search against NVIDIA's (golden values), against all orders, and against a search that tries swap after swap."""

import itertools

import numpy as np
import pytest
import torch

from sparsedet.sparsity.patterns import n_m_mask
from sparsedet.sparsity.permutation import kept_magnitude, search_permutation
from sparsedet.sparsity.permutation.search import _Search


@pytest.fixture(scope="module")
def cases(golden):
    return golden("permutation.json")["cases"]


def weight_of(case):
    """As the golden README says; kind ``chan`` has channels of different sizes."""
    generator = np.random.default_rng(case["seed"])
    weight = generator.standard_normal(case["shape"], dtype=np.float32) * np.float32(0.05)
    if case["kind"] == "chan":
        weight *= np.exp(generator.standard_normal(case["shape"][1])).astype(np.float32)
    assert np.abs(weight).sum() == pytest.approx(case["abs_sum"], rel=1e-6)
    return torch.from_numpy(weight).abs()


@pytest.mark.parametrize("index", range(7))
def test_at_least_as_much_is_kept_as_by_asp(index, cases):
    case = cases[index]
    magnitudes = weight_of(case)
    assert kept_magnitude(magnitudes, 2, 4) == pytest.approx(case["kept_identity"], rel=1e-6)
    assert kept_magnitude(magnitudes[:, case["permutation"]], 2, 4) == pytest.approx(case["kept_permuted"], rel=1e-6)
    for seed in range(3):
        permutation = search_permutation(magnitudes, 2, 4, seed)
        assert sorted(permutation.tolist()) == list(range(case["shape"][1]))
        assert kept_magnitude(magnitudes[:, permutation], 2, 4) >= case["kept_permuted"] * (1 - 1e-6)
    assert torch.equal(permutation, search_permutation(magnitudes, 2, 4, seed))


def test_every_golden_case_is_tested(cases):
    assert len(cases) == 7


def test_kept_magnitude_is_what_the_mask_keeps():
    weight = torch.randn(6, 24)
    for n, m in ((2, 4), (1, 4), (3, 8), (2, 3)):
        expected = float(weight.abs()[n_m_mask(weight.abs(), n, m)].double().sum())
        assert kept_magnitude(weight.abs(), n, m) == pytest.approx(expected, rel=1e-6)


def partitions(channels, m):
    """All ways to put channels into unordered groups of m."""
    if not channels:
        yield []
        return
    first, *others = channels
    for rest in itertools.combinations(others, m - 1):
        left = [channel for channel in others if channel not in rest]
        yield from ([first, *rest, *more] for more in partitions(left, m))


@pytest.mark.parametrize(("n", "m", "num_channels"), [(2, 4, 12), (1, 4, 8), (1, 2, 10), (2, 3, 9), (3, 6, 12)])
def test_the_best_of_all_orders_is_found(n, m, num_channels):
    magnitudes = torch.from_numpy(np.random.default_rng(n * m).exponential(size=(10, num_channels))).float()
    best = max(kept_magnitude(magnitudes[:, order], n, m) for order in partitions(list(range(num_channels)), m))
    found = kept_magnitude(magnitudes[:, search_permutation(magnitudes, n, m)], n, m)
    assert found == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8)])
@pytest.mark.parametrize("values", ["normal", "integers"])
def test_gains_are_what_swaps_gain(n, m, values):
    generator = torch.Generator().manual_seed(1)
    magnitudes = torch.rand(7, 16, generator=generator)
    if values == "integers":
        magnitudes = torch.randint(0, 3, (7, 16), generator=generator).float()
    search = _Search(magnitudes.T.contiguous(), n, m, generator)
    before, gains = kept_magnitude(magnitudes, n, m), search._gains() / 2
    for one, other in itertools.combinations(range(16), 2):
        if one // m != other // m:
            order = list(range(16))
            order[one], order[other] = other, one
            gain = kept_magnitude(magnitudes[:, order], n, m) - before
            assert float(gains[one, other]) == pytest.approx(gain, abs=1e-5)


def test_swaps_end_where_none_gains_and_never_lose():
    magnitudes = torch.rand(20, 32, generator=torch.Generator().manual_seed(3))
    search = _Search(magnitudes.T.contiguous(), 2, 4, torch.Generator())
    kept = [kept_magnitude(magnitudes, 2, 4)]
    while search.swap_best():
        assert torch.equal(search.columns, magnitudes.T[search.order])
        kept.append(kept_magnitude(magnitudes[:, search.order], 2, 4))
        anew = _Search(search.columns, 2, 4, torch.Generator())
        torch.testing.assert_close(search.distances, anew.distances, rtol=1e-6, atol=1e-6)
    assert kept == sorted(set(kept))
    assert len(kept) > 3
    assert float(search._gains().masked_fill(search.is_same, 0).max()) < 1e-3


@pytest.mark.parametrize("magnitudes", [torch.zeros(3, 8), torch.ones(3, 8), torch.rand(3, 4), torch.zeros(0, 8)])
def test_where_nothing_can_be_gained_the_order_stays(magnitudes):
    assert search_permutation(magnitudes, 2, 4).tolist() == list(range(magnitudes.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    magnitudes = torch.rand(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    permutation = search_permutation(magnitudes, 2, 4)
    assert kept_magnitude(magnitudes[:, permutation], 2, 4) > kept_magnitude(magnitudes, 2, 4)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    search_permutation(torch.rand(4, 8, generator=torch.Generator()), 2, 4)
    assert torch.equal(torch.rand(3), expected)
