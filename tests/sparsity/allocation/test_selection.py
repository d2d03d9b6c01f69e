"""The exact choice over all tensors, against a naive full sort and as a property of random models."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsedet.common.errors import SparseDetError, UnreachableTargetError
from sparsedet.sparsity import ALLOCATIONS, LevelWise, OneShot, Sensitivity, Sparsifier, SparsityConfig, Targets
from sparsedet.sparsity.allocation.selection import ScoredTensor, max_zeros, select_counts


def naive_keys(name, weights, depths, tuning=0.5, capped=True):
    """All (key, tensor, position, flat index) from the definitions, one weight at a time."""
    rows = []
    for index, weight in enumerate(weights):
        order = sorted(range(weight.size), key=lambda i: (abs(weight.flat[i]), i))
        squares = [float(weight.flat[i]) ** 2 for i in order]
        total = sum(squares)
        for position, i in enumerate(order):
            match name:
                case "global":
                    key = abs(float(weight.flat[i]))
                case "lamp":
                    key = squares[position] / sum(squares[position:]) if squares[position] else 0.0
                case "energy":
                    share = sum(squares[: position + 1]) / total if total else 0.0
                    key = share / (1 - 0.4 * tuning) ** depths[index]
                case "uniform":
                    key = (position + 0.5) / weight.size
                case "erk":
                    factor = sum(weight.shape) / weight.size
                    key = factor * weight.size / (weight.size - position - 0.5)
                case "sensitivity":
                    share = (position + 0.5) / weight.size
                    loss = share / 2 if share <= 0.5 else 0.25 + (share - 0.5) * 3  # 0.25 at 1/2, 1 at 3/4
                    key = (0 if index == 1 else loss) + 1e-6 * share
                    key = key if share <= 0.75 else 2 + share
            if not capped or position < math.floor(0.99 * weight.size):
                rows.append((key, index, position))
    return sorted(rows)


def tensor(scores, shape=None, name="conv.weight", **fields):
    scores = np.asarray(scores, np.float32)
    return ScoredTensor(name, shape or scores.shape, lambda: scores, **fields)


def scored(weights, depths, pruned=(0, 0, 0, 0)):
    return [
        tensor(np.abs(weight).ravel(), weight.shape, str(index), num_pruned=pruned[index], depth=depth)
        for index, (weight, depth) in enumerate(zip(weights, depths, strict=True))
    ]


def rules(name, names="0123"):
    """Return an allocation by its name; of `sensitivity` one with a curve for each tensor."""
    if name != "sensitivity":
        return ALLOCATIONS[name]()
    points = [(0.5, 0.25), (0.75, 1.0)]
    curve = [{"target_sparsity": at, "measured_sparsity": at, "value": -loss} for at, loss in points]
    flat = [{"target_sparsity": 0.75, "measured_sparsity": 0.75, "value": 0.0}]
    curves = {key: flat if index == 1 else curve for index, key in enumerate(names)}
    return Sensitivity(curves={"fingerprint": "", "dense": 0.0, "curves": curves, "left_out": {}})


# Multiples of 1/8: their squares and sums are exact, so that both sides see the same ties.
tensors = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 40])),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensors=tensors, share=st.floats(0, 1), pruned_share=st.sampled_from([0, 0.3]))
def test_counts_are_those_of_a_full_sort(name, tensors, share, pruned_share):
    weights = [np.random.default_rng(seed).integers(-top, top + 1, (o, i)) / 8 for o, i, seed, top in tensors]
    depths = [index % 3 for index in range(len(weights))]
    pruned = [int(pruned_share * weight.size) for weight in weights]
    for weight, count in zip(weights, pruned, strict=True):
        weight.flat[np.argsort(np.abs(weight), axis=None)[:count]] = 0
    rows = [row for row in naive_keys(name, weights, depths) if row[2] >= pruned[row[1]]]
    num_rows = int(share * len(rows))
    expected = [count + sum(row[1] == index for row in rows[:num_rows]) for index, count in enumerate(pruned)]
    scored_tensors = scored(weights, depths, pruned)
    assert select_counts(rules(name), scored_tensors, [num_rows + sum(pruned)]) == [expected]


@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensors=tensors, share=st.floats(0, 1), data=st.data())
def test_costs_and_limits_are_those_of_a_full_sort(name, tensors, share, data):
    weights = [np.random.default_rng(seed).integers(-top, top + 1, (o, i)) / 8 for o, i, seed, top in tensors]
    depths = [index % 3 for index in range(len(weights))]
    limits, costs = [], []
    for weight in weights:
        limits.append(sorted(data.draw(st.tuples(*[st.integers(0, weight.size)] * 2))))
        costs.append(data.draw(st.sampled_from([0, 1, 3, 640])))
    rows = [
        row
        for row in naive_keys(name, weights, depths, capped=False)
        if limits[row[1]][0] <= row[2] < limits[row[1]][1]
    ]
    expected = [low for low, _ in limits]
    cost = sum(low * costs[index] for index, low in enumerate(expected))
    target = share * sum(costs[index] for _, index, _ in rows) + cost
    for _, index, _ in rows:
        if cost >= target:
            break
        expected[index] += 1
        cost += costs[index]
    scored_tensors = [
        tensor(np.abs(w).ravel(), w.shape, str(i), depth=d, lowest=low, highest=high, cost=float(c))
        for i, (w, d, (low, high), c) in enumerate(zip(weights, depths, limits, costs, strict=True))
    ]
    if max(costs) == 0:
        return  # nothing to reach, see Budget
    assert select_counts(rules(name), scored_tensors, [target]) == [expected]


def test_costs_may_be_any_number():
    # 0.1 cannot be written exactly in binary; ten of them are one
    tensors = [tensor(np.arange(1, 21), cost=0.1), tensor(np.full(20, 100.0), cost=0.7)]
    assert select_counts(ALLOCATIONS["global"](), tensors, [0.9999, 1.0, 1.05]) == [[10, 0], [10, 0], [11, 0]]


def test_scores_are_read_twice_and_never_two_tensors_at_once():
    alive, num_reads = [], 0

    def read():
        nonlocal num_reads
        assert all(reference() is None for reference in alive)
        num_reads += 1
        scores = np.random.default_rng(num_reads % 3).random(3000, dtype=np.float32)
        alive.append(weakref.ref(scores))
        return scores

    tensors = [ScoredTensor(str(index), (30, 100), read) for index in range(3)]
    counts = select_counts(ALLOCATIONS["lamp"](), tensors, [100, 3000, 6000])
    assert [sum(row) for row in counts] == [100, 3000, 6000]
    assert num_reads == 6


def test_large_random_tensors_are_counted_as_a_full_sort_counts_them():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 50)) * scale for scale in (0.01, 1.0, 100.0)]
    every = np.sort(np.concatenate([np.abs(w).astype(np.float32).ravel() for w in weights]))
    limit = 64 * 50 * 99 // 100
    for target in (1, 100, 3000):
        expected = [min(limit, int((np.abs(w).astype(np.float32) <= every[target - 1]).sum())) for w in weights]
        assert select_counts(ALLOCATIONS["global"](), scored(weights, [0] * 3), [target]) == [expected]


def test_limit_of_99_percent_passes_the_rest_on_to_the_other_tensors():
    small, large = np.full((10, 20), 0.001), np.ones((10, 20))
    counts = select_counts(ALLOCATIONS["global"](), scored([small, large], [0, 0]), [198, 199, 396])
    assert counts == [[198, 0], [198, 1], [198, 198]]


def test_limits_hold_where_other_tensors_have_smaller_keys():
    tensors = [tensor([1] * 10, lowest=2, highest=4), tensor([5] * 10, lowest=3), tensor([3] * 10, highest=10)]
    assert select_counts(ALLOCATIONS["global"](), tensors, [5, 8, 18, 22]) == [
        [2, 3, 0], [4, 3, 1], [4, 4, 10], [4, 8, 10],
    ]  # fmt: skip
    already = [tensor([0] * 6 + [1] * 4, num_pruned=6, highest=4), tensor([2] * 10, num_pruned=0)]
    assert select_counts(ALLOCATIONS["global"](), already, [6, 8]) == [[6, 0], [6, 2]]  # what is gone stays gone


@pytest.mark.parametrize(("numel", "expected"), [(1, 0), (2, 1), (99, 98), (100, 99), (101, 99), (1000, 990)])
def test_at_least_one_weight_stays(numel, expected):
    assert max_zeros(numel) == expected


def test_ties_go_by_the_order_of_the_tensors():
    equal = [np.full((2, 5), 0.5) for _ in range(3)]
    assert select_counts(ALLOCATIONS["global"](), scored(equal, [0] * 3), [11]) == [[9, 2, 0]]


def test_already_pruned_weights_go_before_other_zeros():
    tensors = [tensor([0] * 10), tensor([0] * 10, num_pruned=4)]
    assert select_counts(ALLOCATIONS["global"](), tensors, [4, 6, 14]) == [[0, 4], [2, 4], [9, 5]]


def test_already_pruned_weights_are_not_counted_again_among_the_tiniest():
    tensors = [tensor([0, 2e-42, 0, 1e-42, 1], num_pruned=2), tensor([1.5e-42, 3e-42, 1, 1, 1])]
    assert select_counts(ALLOCATIONS["global"](), tensors, [3, 4, 5]) == [[3, 0], [3, 1], [4, 1]]


@pytest.mark.parametrize("target", [3, 19])
def test_unreachable_counts_are_refused(target):
    tensors = [tensor([1] * 10), tensor([0] * 10, num_pruned=4)]
    with pytest.raises(UnreachableTargetError, match=f"expected between 4 and 18 zeros .* got a target of {target}"):
        select_counts(ALLOCATIONS["lamp"](), tensors, [target])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    with pytest.raises(SparseDetError, match=r"conv.weight: expected finite weights, got inf or NaN"):
        tensor([0.1, value, 0.2])


def test_denormal_weights_keep_their_order_when_denormals_are_flushed():
    values = np.array([3e-42, 1e-42, 2e-42, 1.0], np.float32)
    torch.set_flush_denormal(True)
    try:
        counts = select_counts(ALLOCATIONS["uniform"](), [tensor(values)], [2])
        config = SparsityConfig(schedule=OneShot(sparsity=0.5))
        layer = nn.Linear(4, 1)
        layer.weight.data.copy_(torch.from_numpy(values)[None])
        sparsifier = Sparsifier(layer, config)
        sparsifier.prune_(0)
    finally:
        torch.set_flush_denormal(False)
    assert counts == [[2]]
    assert sparsifier.masks["weight"].tolist() == [[True, False, False, True]]


LAYERS = (
    lambda: nn.Linear(7, 3),
    lambda: nn.Linear(1, 1),
    lambda: nn.Conv2d(2, 6, 3, padding=1),
    lambda: nn.Conv2d(6, 6, 1, groups=3),
    lambda: nn.ConvTranspose2d(3, 4, 2),
    lambda: nn.Conv1d(4, 5, 1),
)


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("scope", ["all", "chosen"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_exact_nested_counts_for_any_model(name, scope, bag, data):
    picked = data.draw(st.lists(st.sampled_from(range(len(LAYERS))), min_size=1, max_size=5))
    model = bag(kept=nn.Linear(5, 4), **{f"layer{i}": LAYERS[index]() for i, index in enumerate(picked)})
    step = data.draw(st.sampled_from([0.5, 0.01, 0.0]))  # rounding to multiples makes ties; 0: as they are
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = (values / step).round() * step if step else values
    levels = tuple(sorted(data.draw(st.lists(st.floats(0, 0.985), min_size=1, max_size=3, unique=True))))
    config = SparsityConfig(
        targets=Targets(exclude=("kept",)),
        schedule=LevelWise(levels=levels),
        allocation=rules(name, [f"layer{index}.weight" for index in range(len(LAYERS))]),
        scope=scope,
    )
    sizes = [module.weight.numel() for key, module in model.named_children() if key != "kept"]
    total = sum(sizes) + (20 if scope == "all" else 0)
    reachable = sum(size * 99 // 100 for size in sizes)
    if round(levels[-1] * total) > reachable:
        with pytest.raises(
            UnreachableTargetError, match=f"expected at most {math.floor(reachable / total * 1e4) / 1e4}"
        ):
            Sparsifier(model, config, ())
        return
    sparsifier = Sparsifier(model, config, ())
    before: dict[str, torch.Tensor] = {}
    for level, target in enumerate(levels):
        allocated = sparsifier.allocate(level)
        sparsifier.prune_(level)
        zeros = {key: int((~mask).sum()) for key, mask in sparsifier.masks.items()}
        assert sum(zeros.values()) == round(target * total)
        assert zeros == {key: round(share * sparsifier.masks[key].numel()) for key, share in allocated.items()}
        assert all(zeros[key] <= mask.numel() * 99 // 100 for key, mask in sparsifier.masks.items())
        assert all(not (mask & ~before[key]).any() for key, mask in sparsifier.masks.items() if before)
        before = {key: mask.clone() for key, mask in sparsifier.masks.items()}
        for parameter in model.parameters():  # as training would, weights change between levels, pruned ones not
            parameter.data += 0.1 * (torch.randn(parameter.shape, generator=generator) * (parameter != 0))
