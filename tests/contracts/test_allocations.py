"""What every allocation must be; a new one in the table is tested without a new test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedet.common.config import dump
from sparsedet.sparsity import ALLOCATIONS
from sparsedet.sparsity.allocation.selection import ScoredTensor, TensorSummary, select_counts

CURVE = [{"target_sparsity": 0.4, "measured_sparsity": 0.4, "value": -1.0}]
FIELDS = {
    "sensitivity": {
        "curves": {"fingerprint": "", "dense": 0.0, "curves": {key: CURVE for key in "ab"}, "left_out": {"c": "frozen"}}
    }
}
pytestmark = pytest.mark.parametrize("name", ALLOCATIONS)
RANKS = st.floats(0, 99)
ENERGIES = st.floats(0, 50)


def make(name):
    return ALLOCATIONS[name](**FIELDS.get(name, {}))


def test_every_rule_reads_back_equal(name):
    allocation = make(name)
    assert allocation.type == name
    assert ALLOCATIONS[name].model_validate(dump(allocation)) == allocation
    assert isinstance(allocation.needs_profile, bool)
    assert isinstance(allocation.needs_energy, bool)
    assert isinstance(allocation.needs_scores, bool)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(low=st.tuples(RANKS, st.floats(0, 1), ENERGIES), up=st.tuples(st.floats(0, 50), st.floats(0, 1), ENERGIES))
def test_keys_never_fall(name, low, up):
    """`select_counts` brackets the keys of a bucket by those of its borders: they must rise."""
    tensor = TensorSummary("a", (10, 20), size=200, energy=100.0, depth=1)
    first, second = (np.array([a]) for a in low), (np.array([a + b]) for a, b in zip(low, up, strict=True))
    assert 0 <= make(name).key(tensor, *first) <= make(name).key(tensor, *second) < np.inf


def test_energy_is_summed_up_where_it_is_read(name):
    """Keys of a rule that does not say that it needs energies must not depend on them."""
    tensors = [TensorSummary("a", (10, 20), size=200, energy=energy, depth=1) for energy in (0.0, 100.0)]
    some = np.array([0.5, 3.0])
    keys = [make(name).key(tensor, some, some / 10, some * bool(tensor.energy)) for tensor in tensors]
    assert np.array_equal(*keys) is not make(name).needs_energy


def test_scores_are_looked_at_where_they_are_read(name):
    """Keys of a rule that does not say that it needs scores must not depend on them, nor what it gives."""
    tensor = TensorSummary("a", (10, 20), size=200, energy=100.0, depth=1)
    ranks, allocation = np.array([0.0, 7.0]), make(name)
    keys = [allocation.key(tensor, ranks, np.array(scores), ranks) for scores in ([0.1, 0.2], [0.5, 3.0])]
    energies = [allocation.key(tensor, ranks, ranks, np.array(below)) for below in ([0.1, 0.2], [0.5, 3.0])]
    assert (np.array_equal(*keys) and np.array_equal(*energies)) is not allocation.needs_scores
    if not allocation.needs_scores:
        sizes, targets = {"a": 5000, "b": 300}, [9, 10, 77, 2651, 4000, 5150]
        fields = {"a": {}, "b": {"num_pruned": 9, "highest": 200}}
        values = {key: np.random.default_rng(size).random(size, dtype=np.float32) for key, size in sizes.items()}
        with_scores, without = (
            [
                ScoredTensor(key, (size, 1), (lambda key=key: values[key]) if given else None, **fields[key])
                for key, size in sizes.items()
            ]
            for given in (True, False)
        )
        assert select_counts(allocation, without, targets) == select_counts(allocation, with_scores, targets)


@pytest.mark.parametrize("scores", [np.zeros(50), np.ones(50), np.arange(50), np.full(50, 1e-42), np.full(50, 3e38)])
def test_any_scores_give_the_asked_count(name, scores):
    scores = scores.astype(np.float32)
    tensors = [ScoredTensor(key, (5, 10), lambda: scores) for key in ("a", "b")]
    for target in (0, 1, 50, 97, 98):
        assert [sum(counts) for counts in select_counts(make(name), tensors, [target])] == [target]
