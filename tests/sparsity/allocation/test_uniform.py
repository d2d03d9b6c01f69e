"""Uniform allocation: the same share of every tensor."""

import numpy as np
import pytest

from sparsedet.sparsity import Uniform
from sparsedet.sparsity.allocation.selection import ScoredTensor, select_counts


def counts(sizes, target):
    scores = {n: np.random.default_rng(n).random(n, dtype=np.float32) * n for n in sizes}
    tensors = [ScoredTensor(str(n), (n,), lambda n=n: scores[n]) for n in sizes]
    return select_counts(Uniform(), tensors, [target])[0]


@pytest.mark.parametrize(
    ("sizes", "target", "expected"),
    [
        ((100, 50, 10), 48, [30, 15, 3]),  # 30 % of each, however large its weights are
        ((100, 50, 10), 49, [31, 15, 3]),  # the odd one goes where it changes the share least
        ((3, 3, 3), 4, [2, 1, 1]),  # equal keys: in the order of the tensors
        ((2, 200), 101, [1, 100]),  # the small tensor cannot lose both
    ],
)
def test_counts(sizes, target, expected):
    assert counts(sizes, target) == expected
