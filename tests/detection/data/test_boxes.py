import pytest

from sparsedet.detection.data.boxes import BoxSurvey, clip_bbox
from sparsedet.detection.data.findings import Findings


def judge(boxes, num_outside=0):
    survey, findings = BoxSurvey(), Findings("a.json")
    for number, box in enumerate(boxes):
        survey.add(box, 100, 50, f"annotation {number}", 7)
    for _ in range(num_outside):
        findings.count("box-clipped", "annotation")
    survey.judge(findings)
    return {found.kind for found in findings.found} - {"box-clipped"}, findings.faults


CORNERS = (60.0, 20.0, 90.0, 45.0)


@pytest.mark.parametrize(
    ("boxes", "num_outside", "kinds"),
    [
        ([], 0, set()),
        ([CORNERS] * 10, 6, {"boxes-corners"}),
        ([CORNERS] * 10, 5, set()),
        ([CORNERS] * 9, 9, {"boxes-mostly-outside"}),
        ([CORNERS] * 10 + [(60, 20, 30, 45)], 8, {"boxes-mostly-outside"}),
        ([CORNERS] * 10 + [(60, 20, 90, 50.02)], 8, {"boxes-mostly-outside"}),
        ([CORNERS] * 10 + [(60, 20, 100.02, 45)], 8, {"boxes-mostly-outside"}),
        ([CORNERS] * 10 + [(0, 0, 100, 50.005)], 8, {"boxes-corners"}),
        ([(0.1, 0.1, 0.5, 1.0)] * 10, 0, {"boxes-relative"}),
        ([(0.1, 0.1, 0.5, 1.0)] * 9, 0, set()),
        ([(0.1, 0.1, 0.5, 1.0)] * 10 + [(0, 0, 1, 1.1)], 0, set()),
        ([(-0.1, 0.1, 0.5, 1.0)] * 10, 0, set()),
    ],
)
def test_boxes_are_judged_together(boxes, num_outside, kinds):
    found, faults = judge(boxes, num_outside)
    assert found == kinds
    assert len(faults) == len(kinds & {"boxes-corners", "boxes-relative"})


def test_the_message_about_corners_names_a_box():
    assert judge([CORNERS] * 12, 8)[1] == [
        "a.json: 'annotations': expected boxes [x, y, width, height], got 12 boxes of which 8 reach outside "
        "their image and all are corners [x1, y1, x2, y2], as annotation 0 [60.0, 20.0, 90.0, 45.0]. "
        "Write width and height; `sparsedet data check FILE --fix COPY` does."
    ]


@pytest.mark.parametrize(
    ("bbox", "clipped", "moved_px"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0),
        ((-5, 2, 10, 4), (0, 2, 5, 4), 5),
        ((95, -1, 10, 4), (95, 0, 5, 3), 5),
        ((-10, -20, 300, 300), (0, 0, 100, 50), 230),
        ((200, 2, 10, 4), (100, 2, 0, 4), 110),
    ],
)
def test_clip(bbox, clipped, moved_px):
    assert clip_bbox(bbox, 100, 50) == (clipped, moved_px)
