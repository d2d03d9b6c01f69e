"""What the tests of the permutation share."""

import itertools

import pytest
import torch

from sparsedet.sparsity.permutation import permute


@pytest.fixture
def random_orders(monkeypatch):
    """Any order must leave the outputs as they are, not only good ones; and no time goes into the search."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        permute, "search_permutation", lambda magnitudes, n, m: torch.randperm(magnitudes.shape[1], generator=generator)
    )
    always_more = itertools.count()
    monkeypatch.setattr(permute, "kept_magnitude", lambda magnitudes, n, m: next(always_more))
