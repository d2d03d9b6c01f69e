"""COCO metrics of detections, and COCO results as files.

hotcoco computes the metrics; pycocotools, the reference, can be asked for and gives the same twelve numbers.
"""

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import ConfigError, DatasetError, MissingExtraError
from sparsedet.common.files import write_atomically
from sparsedet.detection.data.findings import printable
from sparsedet.detection.data.json_file import parse_json, read_bytes
from sparsedet.detection.structures import Detections

METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip

Evaluator = Literal["hotcoco", "pycocotools"]
CocoResult = dict[str, Any]

_KEYS = ("image_id", "category_id", "bbox", "score")

_MAX_DETECTIONS = 100  # per image and category, in COCO's numbers


@dataclass(frozen=True)
class _Curves:
    """What an evaluator gives back.

    Attributes:
        stats: the twelve metrics, which belong together only at COCO's own limits of detections.
        precision: shape (10 IoU thresholds, 101 recalls, categories by id, 4 areas, 3 limits of detections); -1 where
            a category has no object of the area.
        recall: the same without recalls.
    """

    stats: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def metrics_of(self, categories: slice) -> dict[str, float]:
        """Return the twelve metrics by name of some of the categories."""
        precision, recall = self.precision[:, :, categories], self.recall[:, categories]
        values = [_mean(precision[..., 0, 2]), _mean(precision[0, ..., 0, 2]), _mean(precision[5, ..., 0, 2])]
        values += [_mean(precision[..., area, 2]) for area in (1, 2, 3)]
        values += [_mean(recall[..., 0, limit]) for limit in (0, 1, 2)]
        values += [_mean(recall[..., area, 2]) for area in (1, 2, 3)]
        return dict(zip(METRICS, values, strict=True))


@dataclass(frozen=True)
class DetailedMetrics:
    """COCO metrics in detail.

    Attributes:
        metrics: what `evaluate` returns.
        per_class: for each category its ``category_id``, ``name``, ``num_objects`` (without crowds) and metrics.
        at_max_detections: for each other limit of detections per image and category the metrics that depend on it:
            ``ap``, ``ap50``, ``ap75``, ``ap_small`` …, ``ar``, ``ar_small`` ….
    """

    metrics: dict[str, float]
    per_class: tuple[dict[str, Any], ...]
    at_max_detections: dict[int, dict[str, float]]


def evaluate(
    ground_truth: dict[str, Any], results: Sequence[CocoResult], evaluator: Evaluator = "hotcoco"
) -> dict[str, float]:
    """Return COCO's twelve box metrics by the names in `METRICS`.

    Args:
        ground_truth: normalised COCO data (`CocoDataset.ground_truth`); images without objects count too.
        results: detections: ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height; pixels).
        evaluator: what computes the metrics.

    Returns:
        Values in [0, 1]; -1 where the ground truth has no object of that size.

    Raises:
        DatasetError: a result is malformed, not finite, or about an image or category that is not there.
        MissingExtraError: pycocotools is asked for and not installed.

    Source: metrics of Lin et al. 2014 (arXiv:1405.0312) as defined by pycocotools.COCOeval.
    """
    stats = _curves(ground_truth, results, evaluator, _MAX_DETECTIONS).stats
    return dict(zip(METRICS, map(float, stats), strict=True))


def evaluate_in_detail(
    ground_truth: dict[str, Any],
    results: Sequence[CocoResult],
    evaluator: Evaluator = "hotcoco",
    max_detections: Sequence[int] = (),
) -> DetailedMetrics:
    """Return COCO's metrics also for each class, and at other limits of detections; see `evaluate`.

    Args:
        ground_truth: as `evaluate` takes it.
        results: as `evaluate` takes them.
        evaluator: what computes the metrics.
        max_detections: limits beside COCO's 100 detections per image and category.

    Raises:
        ConfigError: a limit is below 1.
        DatasetError, MissingExtraError: as `evaluate` does.
    """
    for limit in max_detections:
        if limit < 1:
            raise ConfigError(f"max_detections: expected at least 1, got {limit}. Give a count such as 300.")
    curves = _curves(ground_truth, results, evaluator, _MAX_DETECTIONS)
    num_objects = Counter(entry["category_id"] for entry in ground_truth["annotations"] if not entry["iscrowd"])
    categories = sorted(ground_truth["categories"], key=lambda category: int(category["id"]))
    return DetailedMetrics(
        metrics=dict(zip(METRICS, map(float, curves.stats), strict=True)),
        per_class=tuple(
            {
                "category_id": category["id"],
                "name": category["name"],
                "num_objects": num_objects[category["id"]],
                **curves.metrics_of(slice(index, index + 1)),
            }
            for index, category in enumerate(categories)
        ),
        at_max_detections={
            limit: _at_limit(_curves(ground_truth, results, evaluator, limit)) for limit in max_detections
        },
    )


def _at_limit(curves: _Curves) -> dict[str, float]:
    metrics = curves.metrics_of(slice(None))
    return {name.replace("ar100", "ar"): value for name, value in metrics.items() if name not in ("ar1", "ar10")}


def _mean(values: NDArray[np.float64]) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _curves(
    ground_truth: dict[str, Any], results: Sequence[CocoResult], evaluator: Evaluator, max_detections: int
) -> _Curves:
    _check_results(ground_truth, results)
    detections = [
        {"id": number, **_plain(result), "area": _area(result["bbox"]), "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]
    limits = [1, min(10, max_detections), max_detections]  # in rising order, which pycocotools would make of them
    return EVALUATORS[evaluator](ground_truth, {**ground_truth, "annotations": detections}, limits)


def _evaluate_hotcoco(ground_truth: dict[str, Any], detections: dict[str, Any], limits: list[int]) -> _Curves:
    evaluation = hotcoco.COCOeval(hotcoco.COCO(ground_truth), hotcoco.COCO(detections), "bbox")
    evaluation.params.max_dets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills `stats` as summarize() does, without printing
    curves = evaluation.eval or {}
    return _Curves(np.asarray(evaluation.stats), curves["precision"], curves["recall"])


def _evaluate_pycocotools(ground_truth: dict[str, Any], detections: dict[str, Any], limits: list[int]) -> _Curves:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtraError(
            "evaluator: expected pycocotools to be installed, got no such package. "
            "Run: pip install 'sparsedet[pycocotools]', or use the evaluator hotcoco."
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        for coco, data in (
            (truth, ground_truth),
            (found, detections),
        ):  # it writes into annotations: give copies
            coco.dataset = {**data, "annotations": [dict(annotation) for annotation in data["annotations"]]}
            coco.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _Curves(np.asarray(evaluation.stats), evaluation.eval["precision"], evaluation.eval["recall"])


EVALUATORS: dict[str, Callable[[dict[str, Any], dict[str, Any], list[int]], _Curves]] = {
    "hotcoco": _evaluate_hotcoco,
    "pycocotools": _evaluate_pycocotools,
}


def _check_results(ground_truth: dict[str, Any], results: Sequence[CocoResult]) -> None:
    """Check that every result is well-formed and belongs to the ground truth.

    Raises:
        DatasetError: names the first result that is wrong, by its place in the list.
    """
    image_ids = {image["id"] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    for index, result in enumerate(results):
        where = f"results[{index}]"
        if not result.keys() >= set(_KEYS):
            raise DatasetError(
                f"{where}: expected the keys {list(_KEYS)}, got {sorted(result)}. Give COCO results of boxes."
            )
        for key, known in ("image_id", image_ids), ("category_id", category_ids):
            if type(result[key]) is not int or result[key] not in known:
                got = printable(repr(result[key]) if isinstance(result[key], str) else result[key])
                raise DatasetError(
                    f"{where}.{key}: expected one of the {len(known)} ids in the annotation file, "
                    f"got {got}. Evaluate the results against the annotations they were made for."
                )
        if not _is_box(result["bbox"]) or not _is_finite(result["score"]):
            raise DatasetError(
                f"{where}: expected 4 finite numbers as bbox and a finite score, got {printable(result['bbox'])} and "
                f"{printable(result['score'])} for image {result['image_id']}. "
                "The detector may have diverged: lower its learning rate."
            )


def to_coco_results(
    detections: Detections,
    image_id: int,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    category_ids: Sequence[int],
    inclusive_boxes: bool = False,
) -> list[CocoResult]:
    """Return the detections of one image as COCO results in the pixels of its file.

    Args:
        detections: N boxes in the pixels of the image that the network saw.
        image_id: COCO image id.
        image_size: (height, width) that the network saw, before padding.
        original_size: (height, width) of the image file.
        category_ids: COCO category id of each label, length C.
        inclusive_boxes: scale the last pixel of a box instead of the edge behind it, which undoes what resizing did
            to boxes under ``data.inclusive_boxes``.
    """
    factor_y, factor_x = (original / seen for original, seen in zip(original_size, image_size, strict=True))
    edge = [0, 0, int(inclusive_boxes), int(inclusive_boxes)]
    boxes = (detections.boxes_xyxy.double().cpu().numpy() - edge) * [factor_x, factor_y, factor_x, factor_y] + edge
    boxes[:, 2:] = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
        for bbox, score, label in zip(
            boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


def write_results(path: Path, results: Sequence[CocoResult]) -> None:
    """Write COCO results as JSON, atomically; `read_results` gives back the same numbers."""
    text = json.dumps([_plain(result) for result in results], allow_nan=False)
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_results(path: Path) -> list[CocoResult]:
    """Read COCO results.

    Raises:
        DatasetError: the file is missing, no JSON, or no list of results.
    """
    results = parse_json(read_bytes(path), path)
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DatasetError(
            f"{path}: expected COCO results (a list of objects), got something else. "
            "Give a file like detections.json of a run folder."
        )
    return results


def _plain(result: CocoResult) -> CocoResult:
    """Return the four keys of a result."""
    return {key: result[key] for key in _KEYS}


def _is_box(bbox: Any) -> bool:
    return isinstance(bbox, list | tuple) and len(bbox) == 4 and all(map(_is_finite, bbox)) and _is_finite(_area(bbox))


def _area(bbox: Any) -> Any:
    return bbox[2] * bbox[3]


def _is_finite(number: Any) -> bool:
    try:
        return isinstance(number, int | float) and math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False
