"""Confidence intervals of AP: what they cost at the size of COCO's val2017, and how often they hold the true value.

Synthetic data: boxes of random size and class (a few frequent, many rare), detections near them and strays. Coverage
is the share of data sets whose interval holds the mean AP (or mean drop of AP) of all of them; 95 % are promised.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from timing import print_json, print_table, set_up

from sparsedet.detection.bootstrap import Bootstrap, bootstrap, match, resample_counts

WIDTH, HEIGHT = 640, 480
OBJECTS_PER_IMAGE = 7.2  # as in COCO

Results = list[dict[str, Any]]


def make_truth(random: np.random.Generator, num_images: int, num_classes: int) -> dict[str, Any]:
    """Return COCO data; class c is 1/c as frequent as class 1."""
    shares = 1 / np.arange(1, num_classes + 1)
    shares /= shares.sum()
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(1, num_images + 1)]
    annotations = []
    for image in images:
        for _ in range(random.poisson(OBJECTS_PER_IMAGE)):
            box = random_box(random)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1 + int(random.choice(num_classes, p=shares)),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(random.random() < 0.01),
                }
            )
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, num_classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_box(random: np.random.Generator) -> list[float]:
    """Return x, y, width, height of a box in the image."""
    width, height = np.exp(random.uniform(np.log(8), np.log(300), 2)).tolist()
    return [random.uniform(0, WIDTH - width), random.uniform(0, HEIGHT - height), width, height]


def make_results(random: np.random.Generator, truth: dict[str, Any], num_per_image: int) -> Results:
    """Return up to three detections near each object, with higher scores, and strays up to `num_per_image`."""
    num_classes = len(truth["categories"])
    by_image: dict[int, Results] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        for _ in range(random.integers(4)):
            result = {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
            by_image[annotation["image_id"]].append(
                {**result, "bbox": moved(random, annotation["bbox"], 0.06), "score": float(random.beta(4, 3))}
            )
    for image_id, results in by_image.items():
        while len(results) < num_per_image:
            stray = {"image_id": image_id, "category_id": 1 + int(random.integers(num_classes))}
            results.append({**stray, "bbox": random_box(random), "score": float(random.beta(1.5, 6))})
    return [result for results in by_image.values() for result in results]


def moved(random: np.random.Generator, box: list[float], scale: float) -> list[float]:
    """Return the box with each number changed by about `scale` of its size."""
    x, y, width, height = np.array(box) + random.normal(0, scale, 4) * np.array([box[2], box[3], box[2], box[3]])
    return [float(x), float(y), max(float(width), 1.0), max(float(height), 1.0)]


def degraded(random: np.random.Generator, results: Results) -> Results:
    """Return what a worse detector may find: the same with less exact boxes and scores."""
    return [
        {
            **result,
            "bbox": moved(random, result["bbox"], 0.06),
            "score": float(np.clip(result["score"] + random.normal(0, 0.1), 0, 1)),
        }
        for result in results
    ]


def cost(num_images: int, num_per_image: int, num_classes: int, num_resamples: int) -> dict[str, object]:
    """Return the CPU seconds of the parts of one interval."""
    random = np.random.default_rng(0)
    truth = make_truth(random, num_images, num_classes)
    results = make_results(random, truth, num_per_image)
    began = time.process_time()
    matches = match(truth, results)
    matched = time.process_time()
    matches.ap(resample_counts(num_images, num_resamples))
    return {
        "what": f"{num_images} images, {len(results)} detections, {num_classes} classes, {num_resamples} resamples",
        "cpu_s, match": matched - began,
        "cpu_s, resample": time.process_time() - matched,
    }


def coverage(num_sets: int, num_images: int, num_classes: int, num_resamples: int) -> list[dict[str, object]]:
    """Return for AP and its drop how often intervals hold the mean over `num_sets` data sets."""
    dense, sparse = [], []
    for seed in range(num_sets):
        random = np.random.default_rng(seed)
        truth = make_truth(random, num_images, num_classes)
        results = make_results(random, truth, 15)
        dense.append(bootstrap(truth, results, num_resamples, seed))
        sparse.append(bootstrap(truth, degraded(random, results), num_resamples, seed))
    size = f"{num_sets} sets of {num_images} images, {num_classes} classes"
    nothing = [Bootstrap(one.image_ids, 0.0, np.zeros(num_resamples)) for one in dense]
    return [
        {"what": f"AP: {size}", **_coverage(dense, nothing)},
        {"what": f"AP lost: {size}", **_coverage(dense, sparse)},
    ]


def _coverage(dense: list[Bootstrap], sparse: list[Bootstrap]) -> dict[str, object]:
    values = np.array([one.ap - other.ap for one, other in zip(dense, sparse, strict=True)])
    samples = [one.aps - other.aps for one, other in zip(dense, sparse, strict=True)]
    moved_intervals = np.array([other.drop_from(one) for one, other in zip(dense, sparse, strict=True)])
    plain = np.array([np.quantile(sample, (0.025, 0.975)) for sample in samples])

    def share(intervals: np.ndarray[Any, Any]) -> float:
        return float(((intervals[:, 0] <= values.mean()) & (values.mean() <= intervals[:, 1])).mean())

    return {
        "mean": float(values.mean()),
        "standard_deviation": float(values.std(ddof=1)),
        "standard_deviation_bootstrap": float(np.mean([sample.std() for sample in samples])),
        "bias": float(np.mean([sample.mean() for sample in samples]) - values.mean()),
        "coverage": share(moved_intervals),
        "coverage_of_percentiles": share(plain),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="for the cost")
    parser.add_argument("--detections", type=int, default=100, help="per image, for the cost")
    parser.add_argument("--classes", type=int, default=80, help="for the cost")
    parser.add_argument("--sets", type=int, default=100, help="data sets, for the coverage")
    parser.add_argument("--set-images", type=int, default=300, help="images of each of them")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    set_up()
    paid = cost(options.images, options.detections, options.classes, options.resamples)
    covered = coverage(options.sets, options.set_images, 20, options.resamples)
    print_table(["cost of one interval", "match, CPU s", "resample, CPU s"], [_rounded(paid, 1)])
    print()
    columns = ("mean", "sd of the sets", "sd of resamples", "bias of resamples", "coverage", "of plain percentiles")
    print_table(["95 % intervals", *columns], [_rounded(row, 4) for row in covered])
    print_json([paid, *covered])


def _rounded(row: dict[str, object], digits: int) -> list[object]:
    return [f"{value:.{digits}f}" if isinstance(value, float) else value for value in row.values()]


if __name__ == "__main__":
    main()
