"""One-shot schedule."""

import pytest
from pydantic import ValidationError

from sparsedet.sparsity import OneShot


def test_starts_at_once():
    assert OneShot(sparsity=0.8).boundaries(100) == OneShot(sparsity=0.8).restarts(100) == (0,)
    assert OneShot(sparsity=0.8).target_sparsities == (0.8,)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 80.0])
def test_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ValidationError, match="sparsity"):
        OneShot(sparsity=sparsity)
