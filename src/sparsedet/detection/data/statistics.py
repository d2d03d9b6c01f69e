"""What is in a data set, in numbers: counts, and how sizes and shapes are spread."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsedet.detection.data.coco import Annotation, CocoDataset

SMALL_AREA_PX, LARGE_AREA_PX = 32**2, 96**2  # COCO's limits of small, medium and large objects

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Statistics:
    """What is in one split.

    Attributes:
        name: of the split.
        num_images: all images.
        num_images_without_annotations: images without any annotation.
        num_boxes: annotations that are no crowds; only they are counted and measured below.
        num_crowds: annotations with iscrowd 1.
        boxes_per_category: number of boxes by category name, in the order of the labels.
        images_per_category: number of images with such a box.
        boxes_per_size: number of boxes that COCO counts as small, medium and large.
        values: all values of each measure, see `measure`.
    """

    name: str
    num_images: int
    num_images_without_annotations: int
    num_boxes: int
    num_crowds: int
    boxes_per_category: dict[str, int]
    images_per_category: dict[str, int]
    boxes_per_size: dict[str, int]
    values: dict[str, list[float]]

    @property
    def spread(self) -> dict[str, dict[str, float]]:
        """Minimum, 5 %, median, 95 % and maximum of each measure; empty where it has no value."""
        return {
            name: {key: float(np.quantile(values, share)) for key, share in QUANTILES.items()} if values else {}
            for name, values in self.values.items()
        }


def describe(name: str, dataset: CocoDataset) -> Statistics:
    """Return the statistics of a split called `name`."""
    boxes = [annotation for annotation in dataset.annotations if not annotation.is_crowd]
    names = {category.id: category.name for category in dataset.categories}
    per_category = Counter(annotation.category_id for annotation in boxes)
    with_category = Counter(category for _, category in {(box.image_id, box.category_id) for box in boxes})
    return Statistics(
        name=name,
        num_images=len(dataset.images),
        num_images_without_annotations=sum(not found for found in dataset.annotations_by_image.values()),
        num_boxes=len(boxes),
        num_crowds=len(dataset.annotations) - len(boxes),
        boxes_per_category=_by_name(names, per_category),
        images_per_category=_by_name(names, with_category),
        boxes_per_size=per_size(boxes),
        values=measure(dataset, boxes),
    )


def _by_name(names: dict[int, str], counts: Counter[int]) -> dict[str, int]:
    """Return counts by name; categories of the same name are told apart by their id."""
    shared = {name for name, number in Counter(names.values()).items() if number > 1}
    return {f"{name} ({key})" if name in shared else name: counts[key] for key, name in names.items()}


def per_size(boxes: Sequence[Annotation]) -> dict[str, int]:
    """Return how many boxes COCO counts as small, medium and large."""
    return {
        "small": sum(box.area < SMALL_AREA_PX for box in boxes),
        "medium": sum(SMALL_AREA_PX <= box.area < LARGE_AREA_PX for box in boxes),
        "large": sum(box.area >= LARGE_AREA_PX for box in boxes),
    }


def measure(dataset: CocoDataset, boxes: Sequence[Annotation]) -> dict[str, list[float]]:
    """Return all values of each measure of images and boxes.

    Sizes are in pixels; ratios are width over height; `box_share_of_side` is the square root of the share of the
    image's area; centres are in [0, 1] of the image.
    """
    sizes = {image.id: (image.width, image.height) for image in dataset.images}
    per_image = Counter(box.image_id for box in boxes)
    values: dict[str, list[float]] = {
        "image_width_px": [float(width) for width, _ in sizes.values()],
        "image_height_px": [float(height) for _, height in sizes.values()],
        "image_aspect_ratio": [width / height for width, height in sizes.values()],
        "boxes_per_image": [float(per_image[image_id]) for image_id in sizes],
    }
    xywh = np.array([box.bbox for box in boxes], dtype=np.float64).reshape(-1, 4)
    image_sizes = np.array([sizes[box.image_id] for box in boxes], dtype=np.float64).reshape(-1, 2)
    sides = np.sqrt(xywh[:, 2] * xywh[:, 3])
    centers = (xywh[:, :2] + xywh[:, 2:] / 2) / image_sizes
    arrays = {
        "box_width_px": xywh[:, 2],
        "box_height_px": xywh[:, 3],
        "box_side_px": sides,
        "box_aspect_ratio": xywh[:, 2] / xywh[:, 3],
        "box_share_of_side": sides / np.sqrt(image_sizes.prod(axis=1)),
        "box_center_x": centers[:, 0],
        "box_center_y": centers[:, 1],
    }
    return values | {name: array.tolist() for name, array in arrays.items()}
