"""Random COCO data and detections, and pycocotools driven by hand on their files."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet.detection.evaluation import METRICS

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


@pytest.fixture
def coco():
    """The functions above."""
    return SimpleNamespace(truth=make_truth, results=make_results, reference=reference, category_ids=CATEGORY_IDS)
