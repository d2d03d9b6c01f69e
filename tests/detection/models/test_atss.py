import pytest
import torch

from sparsedet.detection.models.anchors import Anchors
from sparsedet.detection.models.assignment import BACKGROUND, IGNORED
from sparsedet.detection.models.atss import ATSS
from sparsedet.detection.structures import Target

CPU = torch.device("cpu")


def make_target(boxes=(), labels=None, ignore=(), image_size=(64, 64)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    return Target(boxes, labels, torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4), image_size)


@pytest.fixture(scope="module")
def one_level():
    """64 anchors of 16 px, centred in the cells of an 8 x 8 grid of stride 8."""
    return [Anchors(scales=(2.0,)).grid((8, 8), 8, legacy=False, device=CPU)]


def test_candidates_at_equal_distance_are_taken_by_index(one_level):
    # the centre (32, 32) is a corner of four cells: four nearest anchors, then eight equally far ones
    candidates = ATSS(top_n=6)._candidates(one_level, torch.tensor([[32.0, 32.0]]))
    assert sorted(candidates[0].tolist()) == [3 + 8 * 2, 4 + 8 * 2, 27, 28, 35, 36]


def test_positive_anchors_reach_mean_plus_deviation_and_lie_inside(one_level):
    box = [20.0, 20.0, 36.0, 36.0]  # equal to the anchor of cell (3, 3)
    matches = ATSS(top_n=9).assign(one_level, [make_target([box])], legacy=False).matches
    # hand-worked IoUs of the nine cells: 1, four times 8*16 / (2*256 - 128) = 1/3, four times 64 / 448 = 1/7;
    # mean 0.3228, deviation 0.2662, so only the first reaches 0.589
    assert (matches[0] >= 0).nonzero()[:, 0].tolist() == [3 * 8 + 3]


def test_centres_outside_the_box_are_not_positive(one_level):
    narrow = [31.0, 20.0, 33.0, 44.0]  # between two columns of centres (28 and 36)
    matches = ATSS(top_n=9).assign(one_level, [make_target([narrow])], legacy=False).matches
    assert (matches == BACKGROUND).all()


def test_an_anchor_wanted_by_two_boxes_goes_to_the_better_one_and_on_ties_to_the_first(one_level):
    worse, better = [18.0, 18.0, 36.0, 36.0], [20.0, 20.0, 36.0, 36.0]
    assignment = ATSS(top_n=9).assign(one_level, [make_target([worse, better, better])], legacy=False)
    assert assignment.matches[0, 3 * 8 + 3] == 1


def test_boxes_of_other_images_do_not_interfere(one_level):
    first, second = make_target([[20.0, 20.0, 36.0, 36.0]], [5]), make_target([[0.0, 0.0, 17.0, 16.0]], [7])
    both = ATSS().assign(one_level, [make_target(), first, second], legacy=False)
    assert (both.matches[0] == BACKGROUND).all()
    for row, target in ((1, first), (2, second)):
        alone = ATSS().assign(one_level, [target], legacy=False)
        assert torch.equal(both.matches[row] >= 0, alone.matches[0] >= 0)
        positive = both.matches[row][both.matches[row] >= 0]
        assert (both.labels[positive] == target.labels).all()


@pytest.mark.parametrize(("box", "legacy", "is_used"), [
    ((20.0, 20.0, 20.0, 36.0), False, False),
    ((20.0, 20.0, 20.5, 36.0), False, True),
    ((20.0, 20.0, 21.0, 36.0), True, False),
    ((20.0, 20.0, 22.0, 36.0), True, True),
])  # fmt: skip
def test_boxes_without_area_are_dropped(one_level, box, legacy, is_used):
    assignment = ATSS().assign(one_level, [make_target([box])], legacy)
    assert len(assignment.boxes_xyxy) == is_used


def test_ignore_regions_take_background_but_not_positive_anchors(one_level):
    target = make_target([[20.0, 20.0, 36.0, 36.0]], ignore=[[16.0, 16.0, 40.0, 32.0]])
    matches = ATSS(top_n=9).assign(one_level, [target], legacy=False).matches[0].view(8, 8)
    assert (matches == IGNORED).nonzero().tolist() == [[2, 2], [2, 3], [2, 4], [3, 2], [3, 4]]
    assert matches[3, 3] == 0
    overriding = ATSS(top_n=9, ignore_overrides_positives=True)
    assert overriding.assign(one_level, [target], legacy=False).matches[0, 3 * 8 + 3] == IGNORED


def test_ignore_regions_count_in_images_without_boxes(one_level):
    matches = ATSS().assign(one_level, [make_target(ignore=[[0.0, 0.0, 64.0, 64.0]])], legacy=False).matches
    assert (matches == IGNORED).all()


@pytest.mark.parametrize(("legacy", "num_columns"), [(False, 3), (True, 2)])
def test_legacy_ignore_regions_leave_out_half_a_pixel(one_level, legacy, num_columns):
    region = [19.6, 0.0, 40.0, 64.0]  # the column of centres at x = 20 lies 0.4 pixels inside
    matches = ATSS().assign(one_level, [make_target(ignore=[region])], legacy).matches
    assert (matches == IGNORED).sum() == num_columns * 8
