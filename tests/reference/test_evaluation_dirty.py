"""Dirty annotations and odd detections: every evaluator gives what pycocotools gives for the file put right by hand."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet.common.errors import ConfigError
from sparsedet.detection.bootstrap import match
from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.evaluation import EVALUATORS, METRICS, evaluate, evaluate_in_detail, write_results

FIRST_CLASS = 3


def change(truth, **fields):
    """Change the second annotation; the right file lacks it."""
    truth["annotations"][1].update(fields)
    right = copy.deepcopy(truth)
    del right["annotations"][1]
    return truth, right


def box_without_width(truth, results):
    return *change(truth, bbox=[10, 10, 0, 30]), results


def box_outside(truth, results):
    return *change(truth, bbox=[400, 10, 30, 30]), results


def box_reaches_out(truth, results):
    right = copy.deepcopy(truth)
    truth["annotations"][1].update(bbox=[-20, -10, 60, 50], area=3000)
    right["annotations"][1].update(bbox=[0, 0, 40, 40], area=1600)
    return truth, right, results


def annotation_id_zero(truth, results):
    right = copy.deepcopy(truth)
    truth["annotations"][0]["id"] = 0
    return truth, right, results


def duplicate_annotation_ids(truth, results):
    right = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation["id"] = annotation["id"] // 6 + 1
    return truth, right, results


def no_area(truth, results):
    right = copy.deepcopy(truth)
    for annotation in right["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    for annotation in truth["annotations"]:
        del annotation["area"]
    return truth, right, results


def no_iscrowd(truth, results):
    right = copy.deepcopy(truth)
    for annotation, other in zip(truth["annotations"], right["annotations"], strict=True):
        del annotation["iscrowd"]
        other["iscrowd"] = 0
    return truth, right, results


def unsorted_ids(truth, results):
    right = copy.deepcopy(truth)
    truth["images"].reverse()
    truth["categories"].reverse()
    return truth, right, results[::-1]


def tied_scores(truth, results):
    return truth, truth, [{**result, "score": 0.5} for result in results]


def class_without_detections(truth, results):
    return truth, truth, [result for result in results if result["category_id"] != FIRST_CLASS]


def crowds_only(truth, results):
    truth["annotations"] = [{**annotation, "iscrowd": 1} for annotation in truth["annotations"]]
    return truth, truth, results


def negative_width(truth, results):
    for index in range(0, len(results), 3):
        x, y, width, height = results[index]["bbox"]
        results[index]["bbox"] = [x, y, -width, height if index % 2 else -height]
    return truth, truth, results


def more_detections_than_count(truth, results):
    return (
        truth,
        truth,
        [{**result, "score": result["score"] / factor} for result in results for factor in range(1, 60)],
    )


CASES = (
    box_without_width, box_outside, box_reaches_out, annotation_id_zero, duplicate_annotation_ids, no_area, no_iscrowd,
    unsorted_ids, tied_scores, class_without_detections, crowds_only, negative_width, more_detections_than_count,
)  # fmt: skip


def save(folder, name, data):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("seed", range(2))
def test_dirty_data_give_the_numbers_of_clean_data(coco, tmp_path, case, seed):
    random = np.random.default_rng(seed)
    truth = coco.truth(random, 8, 0.2)
    given, right, results = case(truth, coco.results(random, truth, 2, 4))
    dataset, _ = read_coco(save(tmp_path, "given", given), tmp_path)
    expected = coco.reference(save(tmp_path, "right", right), save(tmp_path, "results", results))
    assert (case is crowds_only) == (expected["ap"] == -1)
    for evaluator in EVALUATORS:
        assert evaluate(dataset.ground_truth(), results, evaluator) == pytest.approx(expected, abs=1e-12), evaluator
    ap = match(dataset.ground_truth(), results).ap(np.ones((1, 8), dtype=np.int32))[0]
    assert -1 if np.isnan(ap) else ap == pytest.approx(expected["ap"], abs=1e-12)


def test_no_detections_at_all(coco):
    truth = coco.truth(np.random.default_rng(0), 8, 0.2)
    ours, theirs = (evaluate(truth, [], evaluator) for evaluator in EVALUATORS)
    assert ours == theirs
    assert ours["ap"] == 0


# --- in detail -------------------------------------------------------------------------------------------


def run_by_hand(truth_path, results_path, max_detections, category_ids=None):
    """pycocotools' curves."""
    truth = COCO(str(truth_path))
    evaluation = COCOeval(truth, truth.loadRes(str(results_path)), "bbox")
    evaluation.params.maxDets = max_detections
    if category_ids is not None:
        evaluation.params.catIds = category_ids
    evaluation.evaluate()
    evaluation.accumulate()
    if category_ids is not None:
        evaluation.summarize()
    return evaluation


@pytest.fixture
def files(coco, tmp_path):
    """Ground truth, results of more than 100 detections an image and category, and their files."""
    random = np.random.default_rng(3)
    truth = coco.truth(random, 9, 0.2)
    results = coco.results(random, truth, 3, 900)
    write_results(tmp_path / "results.json", results)
    return truth, results, save(tmp_path, "truth", truth), tmp_path / "results.json"


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_each_class_has_the_numbers_it_has_alone(coco, evaluator, files, capsys):
    truth, results, *paths = files
    detail = evaluate_in_detail(truth, results, evaluator)
    assert detail.metrics == evaluate(truth, results, evaluator)
    assert [row["category_id"] for row in detail.per_class] == sorted(coco.category_ids)
    for row in detail.per_class:
        category_id = row["category_id"]
        assert row["name"] == f"class {category_id}"
        objects = [entry for entry in truth["annotations"] if entry["category_id"] == category_id]
        assert row["num_objects"] == sum(not entry["iscrowd"] for entry in objects)
        expected = run_by_hand(*paths, [1, 10, 100], [category_id]).stats
        assert [row[name] for name in METRICS] == pytest.approx(expected.tolist(), abs=1e-12)
    assert [row["ap"] for row in detail.per_class if row["category_id"] == 12] == [-1]  # it has no object


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_other_limits_of_detections_stand_beside_cocos(evaluator, files, capsys):
    truth, results, *paths = files
    detail = evaluate_in_detail(truth, results, evaluator, max_detections=(2, 300))
    assert detail.metrics == evaluate(truth, results, evaluator)
    assert list(detail.at_max_detections) == [2, 300]
    for limit, metrics in detail.at_max_detections.items():
        curves = run_by_hand(*paths, [limit]).eval
        precision, recall = curves["precision"], curves["recall"]
        for area, name in enumerate(("", "_small", "_medium", "_large")):
            at, found = precision[:, :, :, area, 0], recall[:, :, area, 0]
            assert metrics[f"ap{name}"] == pytest.approx(at[at > -1].mean(), abs=1e-12)
            assert metrics[f"ar{name}"] == pytest.approx(found[found > -1].mean(), abs=1e-12)
        for threshold, name in ((0, "ap50"), (5, "ap75")):
            at = precision[threshold, :, :, 0, 0]
            assert metrics[name] == pytest.approx(at[at > -1].mean(), abs=1e-12)
        assert len(metrics) == 10
    two, three_hundred = detail.at_max_detections.values()
    assert two["ar"] < detail.metrics["ar100"] < three_hundred["ar"]


def test_a_limit_below_one_is_refused(coco):
    with pytest.raises(ConfigError) as raised:
        evaluate_in_detail(coco.truth(np.random.default_rng(0), 4, 0), [], max_detections=(0,))
    assert str(raised.value) == "max_detections: expected at least 1, got 0. Give a count such as 300."
