"""Intervals of AP against evaluators that are given resampled data sets."""

import numpy as np
import pytest

from sparsedet.common.errors import DatasetError
from sparsedet.detection import bootstrap as module
from sparsedet.detection.bootstrap import Bootstrap, bootstrap, match, resample_counts
from sparsedet.detection.evaluation import evaluate

CATEGORY_IDS = (3, 7, 12, 90)


def make_data(seed, num_images=12, crowd_share=0.2, digits=8):
    """Return COCO data with gaps in all ids, and detections near its objects; scores tie at few `digits`."""
    random = np.random.default_rng(seed)
    images = [{"id": 5 * n + 2, "file_name": f"{n}.jpg", "width": 320, "height": 240} for n in range(num_images)]
    annotations, results = [], []
    for image in images[: -max(1, num_images // 4)]:
        for _ in range(random.integers(1, 9)):
            box = [*random.uniform(0, 150, 2), *np.exp(random.uniform(np.log(6), np.log(160), 2))]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(random.choice(CATEGORY_IDS[:3])),
                "bbox": [float(value) for value in box],
                "area": float(box[2] * box[3]),
                "iscrowd": int(random.random() < crowd_share),
            }
            annotations.append(annotation)
            for _ in range(random.integers(4)):
                results.append(found(annotation, random, digits))
    for image in images:
        for _ in range(random.integers(4)):
            box = [*random.uniform(0, 150, 2), *random.uniform(5, 100, 2)]
            stray = {"image_id": image["id"], "category_id": int(random.choice(CATEGORY_IDS)), "bbox": box}
            results.append(found(stray, random, digits))
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def found(annotation, random, digits):
    box = np.array(annotation["bbox"]) + random.normal(0, 0.08, 4) * np.array(annotation["bbox"])[[2, 3, 2, 3]]
    bbox = [float(value) for value in (*box[:2], *np.maximum(box[2:], 1))]
    return {**annotation, "bbox": bbox, "score": round(float(random.random()), digits)}


def resampled(ground_truth, results, counts):
    """Return the data set that has each image as often as `counts` says, under new ids."""
    new_ids = {
        image["id"]: [1000 * image["id"] + copy for copy in range(count)]
        for image, count in zip(ground_truth["images"], counts, strict=True)
    }

    def copies(rows, key):
        return [{**row, key: new} for row in rows for new in new_ids[row[key]]]

    annotations = copies(ground_truth["annotations"], "image_id")
    truth = {
        "images": copies(ground_truth["images"], "id"),
        "annotations": [{**row, "id": number} for number, row in enumerate(annotations, start=1)],
        "categories": ground_truth["categories"],
    }
    return truth, copies(results, "image_id")


def point(ground_truth, results):
    return bootstrap(ground_truth, results, 1).ap


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("digits", [8, 1], ids=["scores differ", "scores tie"])
def test_ap_of_the_images_as_they_are_is_that_of_the_evaluator(seed, digits):
    truth, results = make_data(seed, num_images=4 + 3 * seed, crowd_share=seed / 12, digits=digits)
    assert point(truth, results) == pytest.approx(evaluate(truth, results)["ap"], abs=1e-12)


def test_equal_overlaps_and_the_cap_are_those_of_the_evaluator():
    truth, _ = make_data(0, num_images=1)
    truth["annotations"] = [
        {"id": n, "image_id": 2, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, box in enumerate(([0, 0, 10, 10], [4, 0, 10, 10], [100, 0, 5, 5]), start=1)
    ]
    row = {"image_id": 2, "category_id": 3}
    results = [
        {
            **row,
            "bbox": [2.0, 0, 10, 10],
            "score": 0.9,
        },  # equally near to two; COCO takes the last, which leaves the first
        {**row, "bbox": [0.0, 0, 10, 10], "score": 0.8},
        *({**row, "bbox": [200.0, 0, 10, 10], "score": 0.5} for _ in range(98)),
        {**row, "bbox": [100.0, 0, 5, 5], "score": 0.4},
    ]
    assert 0 < point(truth, results) < evaluate(truth, results[:99] + results[-1:])["ap"]  # the last is the 101st
    assert point(truth, results) == pytest.approx(evaluate(truth, results)["ap"], abs=1e-12)


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_the_data_set_with_its_images_that_often(seed, evaluator):
    truth, results = make_data(seed, num_images=9)
    counts = resample_counts(9, num_resamples=12, seed=seed)
    expected = [evaluate(*resampled(truth, results, row), evaluator)["ap"] for row in counts]
    assert len({round(value, 6) for value in expected}) == 12
    assert match(truth, results).ap(counts) == pytest.approx(expected, abs=1e-12)
    assert bootstrap(truth, results, 12, seed).aps == pytest.approx(expected, abs=1e-12)


def test_more_images_than_100_reach_every_recall(monkeypatch):
    """With 100 objects a recall is a hundredth, which is not always the float that COCO's own recall is."""
    monkeypatch.setattr(module, "_BLOCK", 2)
    truth, _ = make_data(0, num_images=50)
    truth["annotations"] = [
        {"id": n + 1, "image_id": 5 * (n // 2) + 2, "category_id": 7, "bbox": [40 * (n % 2), 0, 20, 20], "area": 400,
         "iscrowd": 0}
        for n in range(100)
    ]  # fmt: skip
    random = np.random.default_rng(0)
    results = [found(annotation, random, 8) for annotation in truth["annotations"] for _ in range(2)]
    counts = np.concatenate([np.ones((1, 50)), resample_counts(50, 4)]).astype(np.int32)
    expected = [evaluate(*resampled(truth, results, row))["ap"] for row in counts]
    assert match(truth, results).ap(counts) == pytest.approx(expected, abs=1e-12)


def test_resamples_draw_as_many_images_as_there_are_and_depend_on_the_seed_only():
    counts = resample_counts(7, 500, seed=3)
    assert counts.shape == (500, 7)
    assert set(counts.sum(axis=1)) == {7}
    assert np.array_equal(counts, resample_counts(7, 500, seed=3))
    assert not np.array_equal(counts, resample_counts(7, 500, seed=4))
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_intervals_are_percentiles_moved_by_the_bias():
    aps = np.array([*np.arange(1001) / 2000, np.nan])  # their mean is 0.25, so a detector of AP 0.35 has a bias of -0.1
    assert Bootstrap((1, 2), 0.35, aps).interval() == pytest.approx((0.1125, 0.5875))
    assert Bootstrap((1, 2), 0.05, aps).interval() == pytest.approx((0, 0.2875))
    assert Bootstrap((1, 2), 0.95, aps).interval() == pytest.approx((0.7125, 1))
    assert Bootstrap((1, 2), 0.0, aps).drop_from(Bootstrap((1, 2), 0.5, 3 * aps)) == pytest.approx((0.025, 0.975))


def test_the_drop_is_dense_minus_sparse_in_the_same_resample():
    dense, sparse = np.array([0.5, 0.3, np.nan, 0.4]), np.array([0.3, 0.1, np.nan, 0.2])
    assert Bootstrap((1,), 0.2, sparse).drop_from(Bootstrap((1,), 0.5, dense)) == pytest.approx((0.3, 0.3))
    truth, results = make_data(1)
    whole, half = bootstrap(truth, results, 200), bootstrap(truth, results[::2], 200)
    low, high = half.drop_from(whole)
    assert 0 < low < evaluate(truth, results)["ap"] - evaluate(truth, results[::2])["ap"] < high
    unpaired = whole.interval()[1] - half.interval()[0] - (whole.interval()[0] - half.interval()[1])
    assert high - low < unpaired


def test_a_drop_between_different_images_is_refused():
    with pytest.raises(DatasetError) as raised:
        Bootstrap((1, 2), 1, np.ones(3)).drop_from(Bootstrap((1, 3), 1, np.ones(3)))
    assert str(raised.value) == (
        "detections: expected both on the same images, got 2 and 2 images that are not the same. "
        "Evaluate both on one data set."
    )


def test_no_objects_give_no_interval_and_no_detections_give_zero():
    truth, results = make_data(2)
    assert bootstrap(truth, [], 20).interval() == (0, 0)
    assert bootstrap({**truth, "annotations": []}, results, 20).interval() is None
    assert bootstrap({**truth, "annotations": []}, results, 20).drop_from(bootstrap(truth, results, 20)) is None


def test_a_resample_without_any_object_does_not_count():
    truth, _ = make_data(0, num_images=2)
    truth["annotations"] = [
        {"id": 1, "image_id": 2, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
    ]
    right = [{"image_id": 2, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5}]
    aps = bootstrap(truth, right, 50).aps
    assert {0 if np.isnan(ap) else ap for ap in aps} == {0, 1}
    assert np.array_equal(np.isnan(aps), resample_counts(2, 50)[:, 0] == 0)
    assert bootstrap(truth, right, 50).interval() == (1, 1)
