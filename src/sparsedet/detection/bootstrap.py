"""How far AP would be from what it is with other images: confidence intervals by bootstrap over the images.

A resample draws as many images as there are, with replacement, and an image drawn twice counts twice. Detections are
matched to objects once; a resample only adds up the matches of its images, for many resamples at a time. One that has
no object of a category leaves the category out of its mean, as COCO does.

Images that come twice raise the interpolated precision of rare classes, so AP of resamples lies above AP of the data
(by 0.8 in percent with 300 images of 20 classes). The percentiles are therefore moved by that bias: as they are, they
held the mean AP of such data sets in 87 of 100 cases, moved in 97 (`benchmarks/ap_intervals.py`; 95 are promised).

Shapes: N images, and of one category G objects and D detections; B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.common.errors import DatasetError

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
MAX_DETECTIONS = 100  # per image and category: COCO's cap for AP
MAX_AREA = 1e10  # square pixels: COCO judges no detection with a negative area or one above this

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_BLOCK = 64  # resamples at a time: bounds the memory to 64 counts for each detection of the largest category

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Interval = tuple[float, float]


@dataclass(frozen=True)
class _CategoryMatches:
    """What AP needs to know of one category.

    Attributes:
        object_images: index of the image of each object that is no crowd, shape (G,).
        found_images: index of the image of each detection, by falling score, shape (D,).
        right: for each IoU threshold the places in `found_images` of detections that match an object.
        ignored: the same for detections that match a crowd, which are neither right nor wrong.
    """

    object_images: Ints
    found_images: Ints
    right: tuple[Ints, ...]
    ignored: tuple[Ints, ...]

    def ap(self, counts: Counts) -> Floats:
        """Return AP, shape (B,), with images counted as often as `counts` (B, N) says; NaN without any object."""
        num_objects = counts.take(self.object_images, axis=1).sum(axis=1)[:, None]
        num_seen = _running_count(counts, self.found_images)
        total = sum(
            self._precision(counts, num_seen, num_objects, *places)
            for places in zip(self.right, self.ignored, strict=True)
        )
        return np.where(num_objects[:, 0] > 0, total / (len(_THRESHOLDS) * len(_RECALLS)), np.nan)

    def _precision(self, counts: Counts, num_seen: Counts, num_objects: Ints, right: Ints, ignored: Ints) -> Any:
        """Return the sum over COCO's recalls of the interpolated precision at one IoU threshold, shape (B,)."""
        if not len(right):
            return 0.0
        num_right = _running_count(counts, self.found_images[right])
        num_judged = num_seen.take(right, axis=1)
        num_before = np.searchsorted(ignored, right)
        if num_before[-1]:
            num_ignored = _running_count(counts, self.found_images[ignored])
            num_judged -= np.where(num_before > 0, num_ignored[:, num_before - 1], 0)
        # Precision rises only where a detection is right, so its maximum at a recall or beyond it is at such a place.
        precision = num_right / np.maximum(num_judged, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = num_right / np.maximum(num_objects, 1)
        reached = (100 * recall + 1e-9).astype(np.int64)  # recalls surely reached; the next by exact comparison only
        reached += recall >= _RECALLS[reached]
        return np.einsum("bd,bd->b", np.diff(reached, axis=1, prepend=0), precision)


@dataclass(frozen=True)
class Matches:
    """Which detections of a data set are right, at COCO's ten IoU thresholds.

    Attributes:
        image_ids: ids of all images, rising.
        categories: one for each category.
    """

    image_ids: tuple[int, ...]
    categories: tuple[_CategoryMatches, ...]

    def ap(self, counts: Counts) -> Floats:
        """Return COCO AP, shape (B,), with images counted as often as `counts` (B, N) says; NaN without any object."""
        return np.concatenate(
            [self._block_ap(counts[start : start + _BLOCK]) for start in range(0, len(counts), _BLOCK)]
        )

    def _block_ap(self, counts: Counts) -> Floats:
        aps = np.stack([category.ap(counts) for category in self.categories])
        num_there = (~np.isnan(aps)).sum(axis=0)
        return np.where(num_there > 0, np.nansum(aps, axis=0) / np.maximum(num_there, 1), np.nan)


@dataclass(frozen=True)
class Bootstrap:
    """AP of a detector in many resamples of the images.

    Attributes:
        image_ids: ids of the images, rising.
        ap: AP of the images as they are; NaN without any object.
        aps: AP in each resample, shape (B,); NaN where it has no object.
    """

    image_ids: tuple[int, ...]
    ap: float
    aps: Floats

    def interval(self) -> Interval | None:
        """Return the interval of AP, moved by the bias and within [0, 1]; None where AP is undefined.

        Source: percentiles and bias of Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 10 and 13.
        """
        return _interval(self.ap, self.aps, 0.0)

    def drop_from(self, dense: "Bootstrap") -> Interval | None:
        """Return the interval of AP of `dense` minus AP of this, in the same resamples (paired), made as `interval` is.

        Raises:
            DatasetError: they are of other images, or of another number of resamples.
        """
        if dense.image_ids != self.image_ids or len(dense.aps) != len(self.aps):
            raise DatasetError(
                f"detections: expected both on the same images, got {len(dense.image_ids)} and "
                f"{len(self.image_ids)} images that are not the same. Evaluate both on one data set."
            )
        return _interval(dense.ap - self.ap, dense.aps - self.aps, -1.0)


def bootstrap(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Return AP in `num_resamples` resamples, which are the same for equal images and `seed`.

    Args:
        ground_truth: normalised COCO data (`CocoDataset.ground_truth`).
        results: detections as `evaluation.evaluate` takes them.
        num_resamples: B.
        seed: of the resamples.
    """
    matches = match(ground_truth, results)
    counts = resample_counts(len(matches.image_ids), num_resamples, seed)
    as_they_are = np.ones((1, len(matches.image_ids)), dtype=np.int32)
    return Bootstrap(matches.image_ids, float(matches.ap(as_they_are)[0]), matches.ap(counts))


def resample_counts(num_images: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Counts:
    """Return how often each image is drawn in each resample, shape (B, N); equal for equal arguments."""
    random = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_images), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(random.integers(num_images, size=num_images), minlength=num_images)
    return counts


def match(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> Matches:
    """Match detections to objects as COCO does; arguments as those of `bootstrap`."""
    image_ids = np.unique([image["id"] for image in ground_truth["images"]])
    objects, found = (_Boxes.of(rows, image_ids) for rows in (ground_truth["annotations"], results))
    categories = tuple(
        _match_category(objects.of_category(category["id"]), found.of_category(category["id"]))
        for category in ground_truth["categories"]
    )
    return Matches(tuple(image_ids.tolist()), categories)


def _interval(value: float, values: Floats, lowest: float) -> Interval | None:
    values = values[~np.isnan(values)]
    if np.isnan(value) or not len(values):
        return None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.clip(value + np.quantile(values, (outside, 1 - outside)) - values.mean(), lowest, 1.0)
    return float(low), float(high)


@dataclass(frozen=True)
class _Boxes:
    """Objects or detections as columns: index of the image, category id, box (x, y, width, height)."""

    images: Ints
    category_ids: Ints
    boxes: Floats
    crowds: NDArray[np.bool_]
    scores: Floats

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], image_ids: Ints) -> "_Boxes":
        return cls(
            np.searchsorted(image_ids, np.array([row["image_id"] for row in rows], dtype=np.int64)),
            np.array([row["category_id"] for row in rows], dtype=np.int64),
            np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            np.array([row.get("iscrowd", 0) for row in rows], dtype=np.bool_),
            np.array([row.get("score", 0) for row in rows], dtype=np.float64),
        )

    def of_category(self, category_id: int) -> "_Boxes":
        return self.take(self.category_ids == category_id)

    def take(self, places: Any) -> "_Boxes":
        columns = (self.images, self.category_ids, self.boxes, self.crowds, self.scores)
        return _Boxes(*(column[places] for column in columns))


def _match_category(objects: _Boxes, found: _Boxes) -> _CategoryMatches:
    objects = objects.take(np.argsort(objects.images, kind="stable"))
    found = found.take(np.lexsort((found.images, -found.scores)))
    found = found.take(_ranks(found.images) < MAX_DETECTIONS)
    area = found.boxes[:, 2] * found.boxes[:, 3]
    found = found.take((area >= 0) & (area <= MAX_AREA))
    # Every detection with every object of its image.
    first, last = (np.searchsorted(objects.images, found.images, side) for side in ("left", "right"))
    num_pairs = last - first
    finder = np.repeat(np.arange(len(found.images)), num_pairs)
    target = np.arange(num_pairs.sum()) + np.repeat(first - (num_pairs.cumsum() - num_pairs), num_pairs)
    iou = _iou(found.boxes[finder], objects.boxes[target], objects.crowds[target])
    is_crowd = objects.crowds[target]
    crowd_iou = np.zeros(len(found.images))
    np.maximum.at(crowd_iou, finder[is_crowd], iou[is_crowd])
    close = ~is_crowd & (iou >= _THRESHOLDS[0])
    finder, target, iou = finder[close], target[close], iou[close]
    order = np.lexsort((-target, -iou, finder))  # COCO takes the last of several objects of equal overlap
    finder, target, iou = finder[order], target[order], iou[order]
    right, ignored = [], []
    for threshold in np.minimum(_THRESHOLDS, 1 - 1e-10):
        enough = iou >= threshold
        right.append(_assign(finder[enough], target[enough]))
        in_crowd = np.flatnonzero(crowd_iou >= threshold)
        ignored.append(np.setdiff1d(in_crowd, right[-1]))
    return _CategoryMatches(objects.images[~objects.crowds], found.images, tuple(right), tuple(ignored))


def _running_count(counts: Counts, images: Ints) -> Counts:
    """Return how many of `images` (D,) are seen up to each, in each resample, shape (B, D)."""
    return counts.take(images, axis=1).cumsum(axis=1, dtype=np.int32)


def _ranks(images: Ints) -> Ints:
    """Return for each entry how many of the same image stand before it."""
    order = np.argsort(images, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(images)) - np.searchsorted(images[order], images[order])
    return ranks


def _iou(found: Floats, objects: Floats, crowds: NDArray[np.bool_]) -> Floats:
    """Return the IoU of pairs of boxes (P, 4); with a crowd the share of the detection that lies in it."""
    corners = np.minimum(found[:, :2] + found[:, 2:], objects[:, :2] + objects[:, 2:])
    sides = np.maximum(corners - np.maximum(found[:, :2], objects[:, :2]), 0)
    overlap = sides[:, 0] * sides[:, 1]
    area = found[:, 2] * found[:, 3]
    union = np.where(crowds, area, area + objects[:, 2] * objects[:, 3] - overlap)
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    return iou


def _assign(finder: Ints, target: Ints) -> Ints:
    """Give each finder, in turn, its first target that is still free; return those that got one."""
    taken: set[int] = set()
    right: list[int] = []
    for one, other in zip(finder.tolist(), target.tolist(), strict=True):
        if other not in taken and (not right or right[-1] != one):
            taken.add(other)
            right.append(one)
    return np.array(right, dtype=np.int64)
