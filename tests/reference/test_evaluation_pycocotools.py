"""The twelve numbers against pycocotools, driven by hand on the files themselves."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.evaluation import EVALUATORS, METRICS, evaluate, write_results

CATEGORY_IDS = (3, 7, 90, 12)


def make_truth(random, num_images, crowd_share):
    """Return COCO data with gaps in all ids, images without objects, and a category without objects."""
    images = [
        {"id": 5 * number + 2, "file_name": f"{number}.jpg", "width": 320, "height": 240}
        for number in range(num_images)
    ]
    annotations = []
    for image in images[: -num_images // 4]:
        for _ in range(random.integers(1, 9)):
            width, height = np.exp(random.uniform(np.log(6), np.log(200), 2))
            bbox = [random.uniform(0, 320 - width), random.uniform(0, 240 - height), width, height]
            annotations.append(
                {
                    "id": 3 * len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice(CATEGORY_IDS[:3])),
                    "bbox": [round(float(value), 2) for value in bbox],
                    "area": float(width * height * random.uniform(0.5, 1)),
                    "iscrowd": int(random.random() < crowd_share),
                }
            )
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_results(random, truth, per_object, per_image):
    """Return detections near the objects, some of another class, and anywhere; scores have ties."""
    near = [
        (
            annotation["image_id"],
            annotation["category_id"],
            np.array(annotation["bbox"]) + random.normal(0, 5, 4),
        )
        for annotation in truth["annotations"]
        for _ in range(random.integers(per_object + 1))
    ]
    anywhere = [
        (image["id"], int(random.choice(CATEGORY_IDS)), random.uniform(1, 150, 4))
        for image in truth["images"]
        for _ in range(random.integers(per_image + 1))
    ]
    return [
        {
            "image_id": image_id,
            "category_id": int(random.choice(CATEGORY_IDS)) if random.random() < 0.1 else category_id,
            "bbox": [float(value) for value in (*bbox[:2], *np.maximum(bbox[2:], 1))],
            "score": round(float(random.random()), 2),
        }
        for image_id, category_id, bbox in near + anywhere
    ]  # fmt: skip


def reference(truth_path, results_path):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        evaluation = COCOeval(truth, truth.loadRes(str(results_path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    ("seed", "num_images", "crowd_share", "per_object", "per_image"),
    [(0, 12, 0.0, 2, 3), (1, 20, 0.3, 3, 5), (2, 5, 0.0, 1, 150), (3, 4, 1.0, 2, 4), (4, 8, 0.1, 0, 3)],
    ids=["plain", "crowds", "more than 100 an image", "crowds only", "nothing near"],
)
def test_twelve_numbers_equal_pycocotools(tmp_path, evaluator, seed, num_images, crowd_share, per_object, per_image):
    random = np.random.default_rng(seed)
    truth = make_truth(random, num_images, crowd_share)
    results = make_results(random, truth, per_object, per_image)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    write_results(tmp_path / "results.json", results)
    dataset, _ = read_coco(tmp_path / "truth.json", tmp_path)
    expected = reference(tmp_path / "truth.json", tmp_path / "results.json")
    assert evaluate(dataset.ground_truth(), results, evaluator) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_evaluators_agree_on_what_was_put_right(tmp_path, seed):
    random = np.random.default_rng(seed)
    truth = make_truth(random, 10, 0.2)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number  # begins at 0
        if number % 5 == 0:
            annotation["bbox"][number % 2] = -3.5
        for key in ("area", "iscrowd"):
            if random.random() < 0.3:
                del annotation[key]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    dataset, findings = read_coco(tmp_path / "truth.json", tmp_path)
    results = make_results(random, truth, 2, 4)
    assert len(findings.warnings) >= 4
    ours, theirs = (evaluate(dataset.ground_truth(), results, evaluator) for evaluator in EVALUATORS)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert 0 < ours["ap"] < 1
