import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from sparsedet.detection.models import max_iou
from sparsedet.detection.models.anchors import Anchors
from sparsedet.detection.models.assignment import BACKGROUND, IGNORED
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.structures import Target

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
CPU = torch.device("cpu")
NO_BOXES = torch.zeros(0, 4)
# IoU with [0, 0, 10, 10]: 1, 0.8, 0.5, 0.4, 0.3, 0
CANDIDATES = torch.tensor([[0.0, 0.0, width, 10.0] for width in (10, 8, 5, 4, 3)] + [[50.0, 50.0, 60.0, 60.0]])
BOX = CANDIDATES[:1]


def match(candidates=CANDIDATES, boxes=BOX, ignore=NO_BOXES, **options):
    options = {"positive_iou": 0.5, "negative_iou": 0.4, "low_quality": False, **options}
    return MaxIoU(**options).match(candidates, torch.as_tensor(boxes), torch.as_tensor(ignore)).tolist()


def make_target(boxes=(), labels=None, ignore=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    return Target(boxes, labels, torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4), (64, 64))


def random_boxes(number, seed):
    corners = torch.rand(number, 4, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.cat([corners[:, :2], corners[:, :2] + 5 + corners[:, 2:]], dim=1)


@pytest.mark.parametrize("image", [0, 1])
def test_matches_of_region_proposals_equal_ups(golden, image):
    units, two_stage = golden("golden_units.npz"), golden("golden_units_two_stage.npz")
    shapes = Anchors(scales=(8.0,), ratios=(0.5, 1.0, 2.0))
    strides = (4, 8, 16, 32, 64)
    anchors = torch.cat([shapes.grid((-(-640 // s), -(-800 // s)), s, legacy=True, device=CPU) for s in strides])
    matches = MaxIoU(positive_iou=0.7, negative_iou=0.3, ignore_iou=0.5, low_quality=True, low_quality_iou=0.3).match(
        anchors, units[f"assign_gt{image}"][:, :4] + ONE_PIXEL, units[f"assign_ignore{image}"] + ONE_PIXEL
    )
    positive = (matches >= 0).nonzero()[:, 0]
    assert torch.equal(positive.int(), two_stage[f"match_rpn_{image}_pos"])
    assert torch.equal(matches[positive].short(), two_stage[f"match_rpn_{image}_pos_gt"])
    counts = golden("golden_units_two_stage.json")["match_rpn"][image]
    assert (matches == BACKGROUND).sum() == counts["neg"]
    assert (matches == IGNORED).sum() == counts["ignore"]


def test_share_inside_equals_ups(golden):
    units, two_stage = golden("golden_units.npz"), golden("golden_units_two_stage.npz")
    share = max_iou._share_inside((units["code_boxes"] + ONE_PIXEL)[:, None], units["code_gt"] + ONE_PIXEL)
    torch.testing.assert_close(share, two_stage["code_iof_pairwise"])


def test_thresholds_are_strict_on_both_sides():
    assert match() == [0, 0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    assert match(positive_iou=0.45) == [0, 0, 0, IGNORED, BACKGROUND, BACKGROUND]
    assert match(negative_iou=0.45) == [0, 0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]
    assert match(negative_iou=0.5) == [0, 0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches_equal_torchvisions(low_quality, monkeypatch):
    # torchvision knows no tolerance, compares with >= and calls ignored ones -2, too
    monkeypatch.setattr(max_iou, "BEST_TOLERANCE", 0.0)
    candidates, boxes = random_boxes(500, 0), random_boxes(20, 1)  # more boxes than are taken at once
    ours = MaxIoU(positive_iou=0.5, negative_iou=0.3, low_quality=low_quality).match(candidates, boxes, NO_BOXES)
    theirs = Matcher(0.5, 0.3, allow_low_quality_matches=low_quality)(box_iou(boxes, candidates))
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) > 10


def test_of_equally_good_boxes_the_first_is_taken():
    assert match(boxes=[[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.9], [0.0, 0.0, 10.0, 9.9]])[0] == 1


def test_the_nearest_candidates_of_a_poorly_matched_box_are_positive():
    far = torch.tensor([[0.0, 0.0, 4.0, 10.0], [0.0, 0.0, 3.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    assert match(far) == [IGNORED, BACKGROUND, BACKGROUND]
    assert match(far, low_quality=True) == [0, BACKGROUND, BACKGROUND]
    nearly_as_far = torch.tensor([[0.0, 0.0, 4.0, 10.0], [0.0, 0.0, 3.9905, 10.0], [0.0, 0.0, 3.989, 10.0]])
    assert match(nearly_as_far, low_quality=True) == [0, 0, BACKGROUND]  # IoU 0.4, 0.39905 and 0.3989


def test_a_nearest_candidate_goes_to_its_own_best_box():
    # the candidate is the only one that touches either box: IoU 0.45 with the first, 0.2 with the second
    candidate = torch.tensor([[0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 50.0, 50.0]])
    boxes = [[0.0, 0.0, 10.0, 4.5], [0.0, 8.0, 10.0, 10.0]]
    assert match(candidate, boxes, low_quality=True) == [0, BACKGROUND]
    assert match(candidate, boxes[::-1], low_quality=True) == [1, BACKGROUND]


def test_the_nearest_candidates_need_a_higher_iou_than_the_bound():
    far = torch.tensor([[0.0, 0.0, 4.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    assert match(far, low_quality=True, low_quality_iou=0.399) == [0, BACKGROUND]
    assert match(far, low_quality=True, low_quality_iou=0.4) == [IGNORED, BACKGROUND]


def test_a_box_that_nothing_overlaps_makes_nothing_positive_but_in_united_perception():
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    boxes = [[0.0, 0.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0]]
    assert match(candidates, boxes, low_quality=True) == [0, BACKGROUND]
    assert match(candidates, boxes, low_quality=True, up_compat=True) == [0, 0]
    assert match(candidates, boxes, low_quality=True, up_compat=True, low_quality_iou=0.1) == [0, BACKGROUND]


def test_candidates_mostly_inside_an_ignore_region_are_ignored_unless_positive():
    # a region from x = 2.5 on: half of the third candidate (strictly more is needed), 3/8 of the fourth lie inside
    region = [[2.5, 0.0, 60.0, 60.0]]
    assert match(ignore=region, negative_iou=0.5, positive_iou=0.7) == [
        0, 0, IGNORED, BACKGROUND, BACKGROUND, IGNORED,
    ]  # fmt: skip
    assert match(ignore=region, negative_iou=0.51, positive_iou=0.7)[2] == BACKGROUND
    assert match(ignore=region, negative_iou=0.51, positive_iou=0.7, ignore_iou=0.3)[2:4] == [IGNORED, IGNORED]


def test_ignore_regions_count_without_boxes_and_without_candidates_nothing_happens():
    assert match(boxes=NO_BOXES) == [BACKGROUND] * 6
    assert match(boxes=NO_BOXES, ignore=[[0.0, 0.0, 20.0, 20.0]]) == [IGNORED] * 5 + [BACKGROUND]
    assert match(NO_BOXES, ignore=[[0.0, 0.0, 20.0, 20.0]]) == []


def test_images_do_not_interfere():
    levels = [CANDIDATES[:3], CANDIDATES[3:]]
    first, second = make_target([[0.0, 0.0, 10.0, 10.0]], [5]), make_target([[50.0, 50.0, 60.0, 60.0]], [7])
    region = make_target(ignore=[[0.0, 0.0, 4.0, 10.0]])
    assigner = MaxIoU(positive_iou=0.5, negative_iou=0.4, low_quality=False)
    assignment = assigner.assign(levels, [make_target(), first, region, second], legacy=False)
    assert assignment.matches.tolist() == [
        [BACKGROUND] * 6,
        [0, 0, IGNORED, IGNORED, BACKGROUND, BACKGROUND],
        [BACKGROUND, BACKGROUND, IGNORED, IGNORED, IGNORED, BACKGROUND],
        [BACKGROUND] * 5 + [1],
    ]
    assert assignment.labels.tolist() == [5, 7]
    assert assignment.boxes_xyxy.tolist() == [[0, 0, 10, 10], [50, 50, 60, 60]]


@pytest.mark.parametrize(("box", "legacy", "is_used"), [
    ((20.0, 20.0, 20.0, 36.0), False, False),
    ((20.0, 20.0, 20.5, 36.0), False, True),
    ((20.0, 20.0, 21.0, 36.0), True, False),
    ((20.0, 20.0, 22.0, 36.0), True, True),
])  # fmt: skip
def test_boxes_without_area_are_dropped(box, legacy, is_used):
    usable = make_target([[0.0, 0.0, 10.0, 10.0]], [4])
    assigner = MaxIoU(positive_iou=0.5, negative_iou=0.4, low_quality=True)
    assignment = assigner.assign([CANDIDATES], [make_target([box], [3]), usable], legacy)
    assert assignment.labels.tolist() == [3, 4][not is_used :]
    assert assignment.matches[1, 0] == int(is_used)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"negative_iou: expected at most positive_iou=0.5, got 0.6. Lower it."):
        MaxIoU(positive_iou=0.5, negative_iou=0.6, low_quality=True)
