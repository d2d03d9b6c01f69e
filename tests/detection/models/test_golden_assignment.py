"""Assigners against United-Perception's own targets for three images, one of them without boxes."""

import math

import pytest
import torch

from sparsedet.detection.models import ATSS, Anchors, MaxIoU
from sparsedet.detection.models.assignment import IGNORED
from sparsedet.detection.models.boxes import encode_boxes
from sparsedet.detection.structures import Target

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
CASES = {
    "atss18": (ATSS(top_n=18, ignore_overrides_positives=True), Anchors(scales=(6.0, 8.0))),
    "atss9": (ATSS(top_n=9, ignore_overrides_positives=True), Anchors(scales=(8.0,))),
    "retina": (
        MaxIoU(positive_iou=0.5, negative_iou=0.4, ignore_iou=0.5, low_quality=True),
        Anchors(scales=(4, 5.0396842, 6.34960421), ratios=(0.5, 1, 2)),
    ),
}


@pytest.mark.parametrize("ignoring", ["noignore", "ignore"])
@pytest.mark.parametrize("name", CASES)
def test_targets_equal_ups(golden, name, ignoring):
    units = golden("golden_units.npz")
    assigner, shapes = CASES[name]
    anchors = [
        shapes.grid((math.ceil(640 / s), math.ceil(800 / s)), s, legacy=True, device=torch.device("cpu"))
        for s in (8, 16, 32, 64, 128)
    ]
    targets = []
    for image, info in enumerate(golden("golden_units.json")["assign"]["image_info"]):
        rows = units[f"assign_gt{image}"]
        regions = units[f"assign_ignore{image}"] if ignoring == "ignore" else torch.zeros(0, 4)
        boxes = rows[:, :4] + ONE_PIXEL
        targets.append(Target(boxes, rows[:, 4].long() - 1, regions + ONE_PIXEL, (info[0], info[1])))
    assignment = assigner.assign(anchors, targets, legacy=True)
    for image, matches in enumerate(assignment.matches):
        prefix = f"assign_{name}_{ignoring}_{image}_"
        positive = (matches >= 0).nonzero()[:, 0]
        assert torch.equal(positive.int(), units[prefix + "pos"])
        assert torch.equal((assignment.labels[matches[positive]] + 1).short(), units[prefix + "cls"])
        assert torch.equal((matches == IGNORED).nonzero()[:, 0].int(), units[prefix + "minus1"])
        deltas = encode_boxes(assignment.boxes_xyxy[matches[positive]], torch.cat(anchors)[positive])
        torch.testing.assert_close(deltas, units[prefix + "loc"], rtol=1e-5, atol=1e-5)
