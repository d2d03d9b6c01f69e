import json
from itertools import islice
from pathlib import Path

import pytest
from pydantic import ValidationError

from sparsedet.detection.data.samplers import (
    SAMPLERS,
    AspectRatioGroups,
    Shuffle,
    epoch_order,
    evaluation_indices,
    group_batches,
    rank_indices,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "golden_optimization.json").read_text())["samplers"]
RATIOS = GOLDEN["aspect_ratios"]
BATCH_SIZE = 4
TRAIN_CASES = [name for name in GOLDEN["cases"] if not name.startswith("test")]


def numbers(name):
    """Return world, rank and epoch out of a name such as ``world2_rank1_epoch0``."""
    return [int("".join(filter(str.isdigit, part))) for part in name.removeprefix("test_").split("_")]


def indices(batches):
    return [[index for _, index in batch] for batch in batches]


# --- United-Perception's own orders ----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAIN_CASES)
def test_united_perceptions_order_of_an_epoch(name):
    world, rank, epoch = numbers(name)
    golden = GOLDEN["cases"][name]
    own = rank_indices(epoch_order(len(RATIOS), epoch, seed=0), world, rank)
    assert own == golden["indices"]
    groups = [int(ratio >= 1) for ratio in RATIOS]
    assert group_batches(own, groups, BATCH_SIZE) == golden["batches"]
    assert len(golden["batches"]) == golden["len"]


@pytest.mark.parametrize("world", [1, 2])
def test_the_ranks_of_an_epoch_take_turns(world):
    steps = GOLDEN["cases"][f"world{world}_rank0_epoch0"]["len"]
    batches = AspectRatioGroups().batches(RATIOS, BATCH_SIZE, world, seed=0, first_step=0)
    for epoch in range(2):
        found = list(islice(batches, steps * world))
        assert {batch_epoch for batch in found for batch_epoch, _ in batch} == {epoch}
        for rank in range(world):
            golden = GOLDEN["cases"][f"world{world}_rank{rank}_epoch{epoch}"]["batches"]
            assert indices(found[rank::world]) == golden


def test_united_perceptions_endless_stream():
    # UP, resumed at iteration 13 of epochs of 10, begins with epoch 0 again and goes on with epoch 23 // 10 = 2; a
    # resumed run of ours goes on where it was, see below.
    golden = GOLDEN["infinite_start_iter13_world1_first12"]
    assert golden[:10] == indices(islice(AspectRatioGroups().batches(RATIOS, BATCH_SIZE, 1, 0, 0), 10))
    assert golden[10:] == indices(islice(AspectRatioGroups().batches(RATIOS, BATCH_SIZE, 1, 0, 20), 2))


@pytest.mark.parametrize("name", [name for name in GOLDEN["cases"] if name.startswith("test")])
def test_united_perceptions_evaluation_order(name):
    world, rank = numbers(name)
    assert list(evaluation_indices(len(RATIOS), world, rank)) == GOLDEN["cases"][name]


# --- worked out by hand ----------------------------------------------------------------------------------


def test_groups_worked_out_by_hand():
    groups = [0, 0, 1, 0, 1, 2, 0]
    assert group_batches([2, 0, 1, 5, 4, 3, 6], groups, 2) == [[2, 4], [0, 1], [5], [3, 6]]
    assert group_batches([5, 2, 0], groups, 2) == [[5], [2]]  # ceil(3 / 2) batches: the third is left out
    assert group_batches([0, 1], groups, 1) == [[0], [1]]


def test_ranks_share_out_an_order_and_repeat_its_beginning():
    assert [rank_indices([4, 5, 6, 7, 8], 3, rank) for rank in range(3)] == [[4, 5], [6, 7], [8, 4]]
    assert [rank_indices([4, 5], 5, rank) for rank in range(5)] == [[4], [5], [4], [5], [4]]


def test_a_ratio_at_a_boundary_belongs_to_the_upper_group():
    ratios = [0.4, 0.5, 0.99, 1.0, 1.2, 0.5]
    sampler = AspectRatioGroups(boundaries=(0.5, 1.0))
    batches = indices(islice(sampler.batches(ratios, 2, 1, seed=0, first_step=0), 3))
    groups = [{"a" if index == 0 else "b" if index in (1, 2, 5) else "c" for index in batch} for batch in batches]
    assert all(len(group) == 1 for group in groups)


# --- any sampler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_stream_can_be_entered_at_any_step(name, num_ranks):
    sampler = SAMPLERS[name]()
    assert sampler.type == name
    whole = list(islice(sampler.batches(RATIOS, 2, num_ranks, 5, 0), 40 * num_ranks))
    for first_step in (1, 6, 7, 18, 19, 39):
        rest = list(islice(sampler.batches(RATIOS, 2, num_ranks, 5, first_step), (40 - first_step) * num_ranks))
        assert rest == whole[first_step * num_ranks :]


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_seed_or_epoch_gives_another_order(name):
    sampler = SAMPLERS[name]()
    orders = [
        indices(islice(sampler.batches(RATIOS, 1, 1, seed, first_step), len(RATIOS)))
        for seed, first_step in ((0, 0), (1, 0), (0, len(RATIOS)), (2**40, 0))
    ]
    assert len({json.dumps(order) for order in orders}) == 4
    assert all(sorted(index for (index,) in order) == list(range(len(RATIOS))) for order in orders)


def test_shuffled_batches_are_full_and_cross_the_ends_of_passes():
    batches = list(islice(Shuffle().batches([1.0] * 7, 3, 2, 0, 0), 14))
    assert [len(batch) for batch in batches] == [3] * 14
    positions = [position for batch in batches for position in batch]
    for epoch in range(6):
        assert sorted(positions[epoch * 7 : epoch * 7 + 7]) == [(epoch, index) for index in range(7)]


@pytest.mark.parametrize("boundaries", [(1.0, 0.5), (1.0, 1.0), (0.0,)])
def test_boundaries_that_do_not_rise_are_refused(boundaries):
    with pytest.raises(ValidationError, match=r"expected ratios that rise|greater than 0"):
        AspectRatioGroups(boundaries=boundaries)
