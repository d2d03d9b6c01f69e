import json
import math
import sys

import pytest
import torch

from sparsedet.common.errors import DatasetError, MissingExtraError
from sparsedet.detection.evaluation import (
    EVALUATORS,
    METRICS,
    evaluate,
    read_results,
    to_coco_results,
    write_results,
)
from sparsedet.detection.structures import Detections

both = pytest.mark.parametrize("evaluator", EVALUATORS)


def truth(num_images=2, boxes=((10, 10, 40, 40), (60, 60, 20, 20))):
    """Return ground truth with `boxes` on the first of `num_images` images of 100 x 100 pixels."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 100, "height": 100}
            for number in range(1, num_images + 1)
        ],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 5,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, box in enumerate(boxes, start=1)
        ],
    }


def result(bbox, score=0.9, image_id=1):
    return {"image_id": image_id, "category_id": 5, "bbox": list(bbox), "score": score}


PERFECT = [result((10, 10, 40, 40)), result((60, 60, 20, 20))]


@both
def test_perfect_detections(evaluator):
    metrics = evaluate(truth(), PERFECT, evaluator)
    assert tuple(metrics) == METRICS
    assert metrics == pytest.approx({**dict.fromkeys(METRICS, 1), "ap_large": -1, "ar_large": -1, "ar1": 0.5})


@both
def test_no_detections(evaluator):
    metrics = evaluate(truth(), [], evaluator)
    assert {name for name, value in metrics.items() if value == 0} == set(METRICS) - {"ap_large", "ar_large"}


@both
def test_detections_on_images_without_objects_count(evaluator):
    wrong = [result((1, 1, 30, 30), score=0.95, image_id=2) for _ in range(2)]
    assert evaluate(truth(), PERFECT + wrong, evaluator)["ap"] == pytest.approx(1 / 2)


@both
def test_half_overlap_counts_up_to_its_iou(evaluator):
    shifted = [result((10, 10, 40, 30))]  # IoU 0.75 with the only object: found at 6 of 10 thresholds
    metrics = evaluate(truth(boxes=((10, 10, 40, 40),)), shifted, evaluator)
    assert (metrics["ap50"], metrics["ap75"]) == pytest.approx((1, 1))
    assert metrics["ap"] == pytest.approx(0.6)


@both
def test_only_the_best_100_of_an_image_count(evaluator):
    boxes = [((number % 13) * 7, (number // 13) * 7, 5, 5) for number in range(150)]
    metrics = evaluate(truth(boxes=boxes), [result(box) for box in boxes], evaluator)
    assert metrics["ar100"] == pytest.approx(100 / 150)


@both
def test_evaluation_prints_nothing_and_changes_no_argument(evaluator, capfd):
    data, results = truth(), [dict(entry) for entry in PERFECT]
    before = json.dumps([data, results])
    evaluate(data, results, evaluator)
    assert json.dumps([data, results]) == before
    assert capfd.readouterr() == ("", "")


def test_missing_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingExtraError) as raised:
        evaluate(truth(), PERFECT, "pycocotools")
    assert str(raised.value) == (
        "evaluator: expected pycocotools to be installed, got no such package. "
        "Run: pip install 'sparsedet[pycocotools]', or use the evaluator hotcoco."
    )


# --- faulty results --------------------------------------------------------------------------------------

KEYS = "['image_id', 'category_id', 'bbox', 'score']"
DIVERGED = "The detector may have diverged: lower its learning rate."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"score": math.nan},
            f": expected 4 finite numbers as bbox and a finite score, got [1, 1, 5, 5] and nan for image 1. {DIVERGED}",
        ),
        (
            {"bbox": [1, 1, math.inf, 5]},
            ": expected 4 finite numbers as bbox and a finite score, got [1, 1, inf, 5] and "
            f"0.9 for image 1. {DIVERGED}",
        ),
        (
            {"bbox": [1, 1, 5]},
            f": expected 4 finite numbers as bbox and a finite score, got [1, 1, 5] and 0.9 for image 1. {DIVERGED}",
        ),
        (
            {"bbox": None},
            f": expected 4 finite numbers as bbox and a finite score, got None and 0.9 for image 1. {DIVERGED}",
        ),
        (
            {"image_id": 9},
            ".image_id: expected one of the 2 ids in the annotation file, got 9. Evaluate "
            "the results against the annotations they were made for.",
        ),
        (
            {"image_id": "1"},
            ".image_id: expected one of the 2 ids in the annotation file, got '1'. Evaluate "
            "the results against the annotations they were made for.",
        ),
        (
            {"image_id": [1]},
            ".image_id: expected one of the 2 ids in the annotation file, got [1]. Evaluate "
            "the results against the annotations they were made for.",
        ),
        (
            {"image_id": True},
            ".image_id: expected one of the 2 ids in the annotation file, got True. Evaluate "
            "the results against the annotations they were made for.",
        ),
        (
            {"score": 10**400},
            ": expected 4 finite numbers as bbox and a finite score, got [1, 1, 5, 5] and "
            f"{'1' + '0' * 199}… for image 1. {DIVERGED}",
        ),
        (
            {"bbox": [0, 0, 1e200, 1e200]},
            ": expected 4 finite numbers as bbox and a finite score, got [0, 0, 1e+200, 1e+200] and 0.9 for image 1. "
            f"{DIVERGED}",
        ),
        (
            {"category_id": 0},
            ".category_id: expected one of the 1 ids in the annotation file, got 0. Evaluate "
            "the results against the annotations they were made for.",
        ),
    ],
)
def test_faulty_results_are_refused(values, message):
    with pytest.raises(DatasetError) as raised:
        evaluate(truth(), [*PERFECT, {**result((1, 1, 5, 5)), **values}])
    assert str(raised.value) == f"results[2]{message}"


def test_results_of_masks_are_refused():
    with pytest.raises(DatasetError) as raised:
        evaluate(truth(), [{"image_id": 1, "category_id": 5, "segmentation": {}, "score": 1}])
    assert str(raised.value) == (
        f"results[0]: expected the keys {KEYS}, "
        "got ['category_id', 'image_id', 'score', 'segmentation']. Give COCO results of boxes."
    )


# --- from the detector to a file and back ----------------------------------------------------------------


def test_to_coco_results_scales_each_side_and_gives_category_ids():
    found = Detections(
        boxes_xyxy=torch.tensor([[10.0, 20.0, 30.0, 50.0], [0.0, 0.0, 1.0, 1.0]]),
        scores=torch.tensor([0.5, 0.25]),
        labels=torch.tensor([1, 0]),
    )
    assert to_coco_results(found, 7, image_size=(50, 100), original_size=(100, 400), category_ids=(3, 90)) == [
        {"image_id": 7, "category_id": 90, "bbox": [40.0, 40.0, 80.0, 60.0], "score": 0.5},
        {"image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 4.0, 2.0], "score": 0.25},
    ]


def test_to_coco_results_scales_the_last_pixel_of_inclusive_boxes():
    boxes = torch.tensor([[10.0, 20.0, 31.0, 41.0], [10.0, 20.0, 10.25, 20.75]])
    found = Detections(boxes, torch.tensor([0.5, 0.5]), torch.tensor([0, 0]))
    large, tiny = to_coco_results(found, 7, (50, 100), (100, 400), (3,), inclusive_boxes=True)
    assert large["bbox"] == [40, 40, 30 * 4 - 40 + 1, 40 * 2 - 40 + 1]
    assert tiny["bbox"] == [40, 40, 0, 0.5]  # a last pixel before the first leaves nothing


def test_to_coco_results_of_nothing():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert to_coco_results(nothing, 7, (50, 100), (50, 100), (3,)) == []


def test_results_read_again_are_the_same_numbers(tmp_path):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 4, generator=generator) * 50
    found = Detections(
        boxes_xyxy=torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1),
        scores=torch.rand(200, generator=generator),
        labels=torch.zeros(200, dtype=torch.int64),
    )
    results = to_coco_results(found, 1, (100, 100), (93, 71), (5,))
    path = tmp_path / "folder" / "detections.json"
    write_results(path, results)
    assert read_results(path) == results
    assert evaluate(truth(), read_results(path)) == evaluate(truth(), results)


@pytest.mark.parametrize("content", ['{"images": []}', "[1, 2]"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "detections.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as raised:
        read_results(path)
    assert str(raised.value) == (
        f"{path}: expected COCO results (a list of objects), got something else. "
        "Give a file like detections.json of a run folder."
    )


def test_a_truncated_results_file_is_refused(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text('[{"image_id": 1')
    with pytest.raises(DatasetError, match="expected valid JSON, got 15 bytes that are none"):
        read_results(path)
