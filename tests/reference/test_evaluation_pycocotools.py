"""The twelve numbers against pycocotools, driven by hand on the files themselves."""

import json

import numpy as np
import pytest

from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.evaluation import EVALUATORS, evaluate, write_results


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    ("seed", "num_images", "crowd_share", "per_object", "per_image"),
    [(0, 12, 0.0, 2, 3), (1, 20, 0.3, 3, 5), (2, 5, 0.0, 1, 150), (3, 4, 1.0, 2, 4), (4, 8, 0.1, 0, 3)],
    ids=["plain", "crowds", "more than 100 an image", "crowds only", "nothing near"],
)
def test_twelve_numbers_equal_pycocotools(
    coco, tmp_path, evaluator, seed, num_images, crowd_share, per_object, per_image
):
    random = np.random.default_rng(seed)
    truth = coco.truth(random, num_images, crowd_share)
    results = coco.results(random, truth, per_object, per_image)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    write_results(tmp_path / "results.json", results)
    dataset, _ = read_coco(tmp_path / "truth.json", tmp_path)
    expected = coco.reference(tmp_path / "truth.json", tmp_path / "results.json")
    assert evaluate(dataset.ground_truth(), results, evaluator) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_evaluators_agree_on_what_was_put_right(coco, tmp_path, seed):
    random = np.random.default_rng(seed)
    truth = coco.truth(random, 10, 0.2)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number  # begins at 0
        if number % 5 == 0:
            annotation["bbox"][number % 2] = -3.5
        for key in ("area", "iscrowd"):
            if random.random() < 0.3:
                del annotation[key]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    dataset, findings = read_coco(tmp_path / "truth.json", tmp_path)
    results = coco.results(random, truth, 2, 4)
    assert len(findings.warnings) >= 4
    ours, theirs = (evaluate(dataset.ground_truth(), results, evaluator) for evaluator in EVALUATORS)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert 0 < ours["ap"] < 1
