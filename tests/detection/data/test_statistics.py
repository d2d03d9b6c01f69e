import pytest

from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.data.statistics import describe


def read(write, data):
    path = write(data)
    return describe("train", read_coco(path, path.parent)[0])


def test_counts(write, make_coco):
    data = make_coco(images=3, boxes=[[0, 0, 40, 30], [5, 5, 10, 10], [0, 0, 4, 4], [1, 1, 3, 3]])
    for annotation, image, category, crowd in zip(
        data["annotations"], (1, 1, 2, 2), (3, 3, 3, 7), (0, 0, 0, 1), strict=True
    ):
        annotation.update(image_id=image, category_id=category, iscrowd=crowd)
    found = read(write, data)
    assert (found.num_images, found.num_images_without_annotations, found.num_boxes, found.num_crowds) == (3, 1, 3, 1)
    assert found.boxes_per_category == {"cat": 3, "dog": 0}
    assert found.images_per_category == {"cat": 2, "dog": 0}
    assert found.boxes_per_size == {"small": 2, "medium": 1, "large": 0}
    assert found.values["boxes_per_image"] == [2, 1, 0]


def test_measures(write, make_coco):
    data = make_coco(images=2, boxes=[[0, 0, 40, 10], [10, 20, 4, 4]])
    data["images"][1].update(width=100, height=50)
    data["annotations"][1]["image_id"] = 2
    values = read(write, data).values
    assert values["image_width_px"] == [40, 100]
    assert values["image_height_px"] == [30, 50]
    assert values["image_aspect_ratio"] == pytest.approx([4 / 3, 2])
    assert values["box_width_px"] == [40, 4]
    assert values["box_height_px"] == [10, 4]
    assert values["box_side_px"] == [20, 4]
    assert values["box_aspect_ratio"] == [4, 1]
    assert values["box_share_of_side"] == pytest.approx([(400 / 1200) ** 0.5, (16 / 5000) ** 0.5])
    assert values["box_center_x"] == pytest.approx([0.5, 0.12])
    assert values["box_center_y"] == pytest.approx([5 / 30, 22 / 50])


def test_spread(write, make_coco):
    data = make_coco(boxes=[[1, 1, width, 2] for width in range(1, 22)])
    assert read(write, data).spread["box_width_px"] == {"min": 1, "p5": 2, "median": 11, "p95": 20, "max": 21}


def test_crowds_alone_have_no_spread(write, make_coco):
    data = make_coco()
    data["annotations"][0]["iscrowd"] = 1
    found = read(write, data)
    assert found.spread["box_width_px"] == {}
    assert found.boxes_per_category == {"cat": 0, "dog": 0}


def test_categories_of_one_name_are_told_apart(write, make_coco):
    data = make_coco()
    data["categories"][1]["name"] = "cat"
    assert read(write, data).boxes_per_category == {"cat (3)": 1, "cat (7)": 0}
