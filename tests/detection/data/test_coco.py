import json
import math

import pytest

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import read_coco

INSIDE = [2.0, 3.0, 10.0, 8.0]
OTHER = [5.0, 4.0, 9.0, 7.0]


def read(path):
    return read_coco(path, path.parent / "images")


def faults(path):
    with pytest.raises(DatasetError) as raised:
        read(path)
    return str(raised.value).replace(f"{path}: ", "").split("\n")


def changed(data, key, **values):
    """Return `data` with `values` put into the first entry of `key`; None removes."""
    entry = data[key][0]
    for name, value in values.items():
        if value is None:
            del entry[name]
        else:
            entry[name] = value
    return data


# --- what is read ----------------------------------------------------------------------------------------


def test_read_gives_images_and_categories_sorted_by_id_whatever_their_order_and_gaps(write, make_coco):
    data = make_coco(images=3)
    data["images"].reverse()
    data["categories"] = [{"id": 90, "name": "z"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    dataset, findings = read(write(data))
    assert [image.id for image in dataset.images] == [1, 2, 3]
    assert dataset.category_ids == (3, 7, 90)
    assert [category.name for category in dataset.categories] == ["cat", "dog", "z"]
    assert [len(found) for found in dataset.annotations_by_image.values()] == [1, 0, 0]
    assert findings.warnings == ()


def test_ground_truth_of_a_clean_file_is_that_file(write, make_coco):
    data = make_coco(boxes=[INSIDE, [0, 0, 40, 30]])
    data["annotations"][1]["iscrowd"] = 1
    assert read(write(data))[0].ground_truth() == data


def test_an_area_that_differs_from_the_box_is_kept(write, make_coco):
    dataset, findings = read(write(changed(make_coco(), "annotations", area=55.5)))
    assert dataset.annotations[0].area == 55.5
    assert findings.warnings == ()


def test_data_hash_changes_with_the_file(write, make_coco):
    first = read(write(make_coco()))[0].data_hash
    assert read(write(make_coco()))[0].data_hash == first
    assert read(write(make_coco(images=3)))[0].data_hash != first
    assert len(first) == 16


def test_unknown_keys_are_allowed(write, make_coco):
    data = changed(make_coco(), "annotations", segmentation=[[0, 0, 1, 1]], attributes={"x": 1})
    assert read(write({**data, "info": {}, "licenses": []}))[1].warnings == ()


# --- what is put right and counted -----------------------------------------------------------------------

PUT_RIGHT = [
    ([-5, -5, 20, 20], (0, 0, 15, 15), "reaches over left and top"),
    ([30, 20, 20, 20], (30, 20, 10, 10), "reaches over right and bottom"),
    ([-5, -5, 100, 100], (0, 0, 40, 30), "covers the image"),
    ([39, 0, 5, 5], (39, 0, 1, 5), "one pixel stays"),
]


@pytest.mark.parametrize(("box", "clipped", "why"), PUT_RIGHT, ids=[why for *_, why in PUT_RIGHT])
def test_a_box_partly_outside_is_clipped_and_counted(write, make_coco, box, clipped, why):
    path = write(make_coco(boxes=[box, INSIDE, OTHER]))
    dataset, findings = read(path)
    assert dataset.annotations[0].bbox == clipped
    assert dataset.annotations[0].area == clipped[2] * clipped[3]
    assert findings.warnings == (f"{path}: 1 x box reached outside its image and was clipped (annotation 1 (image 1))",)


@pytest.mark.parametrize("box", [[50, 5, 5, 5], [-20, 5, 10, 5], [5, 30, 5, 5], [39.5, 0, 5, 5]])
def test_a_box_wholly_outside_is_left_out_and_counted(write, make_coco, box):
    path = write(make_coco(boxes=[INSIDE, box, OTHER]))
    dataset, findings = read(path)
    assert [annotation.id for annotation in dataset.annotations] == [1, 3]
    assert findings.warnings == (
        f"{path}: 1 x box lies outside its image (less than a pixel inside) and was left out (annotation 2 (image 1))",
    )


@pytest.mark.parametrize("box", [[5, 5, 5.5, 0], [5, 5, 0.0, 5], [5, 5, 0, 0], [60, 5, 0, 5]])
def test_a_box_without_width_or_height_is_left_out_and_counted(write, make_coco, box):
    path = write(make_coco(boxes=[INSIDE, box]))
    dataset, findings = read(path)
    assert [annotation.id for annotation in dataset.annotations] == [1]
    assert findings.warnings == (
        f"{path}: 1 x box has no width or no height and was left out (annotation 2 (image 1))",
    )


def test_a_box_over_the_edge_by_rounding_is_clipped_without_a_word(write, make_coco):
    dataset, findings = read(write(make_coco(boxes=[[30, 20, 10.004, 10.004]])))
    assert dataset.annotations[0].bbox == (30, 20, 10, 10)
    assert findings.warnings == ()


def test_a_narrow_box_inside_is_kept_as_it_is(write, make_coco):
    dataset, findings = read(write(make_coco(boxes=[[30, 20, 0.25, 5]])))
    assert dataset.annotations[0].bbox == (30, 20, 0.25, 5)
    assert findings.warnings == ()


def test_a_narrow_box_just_outside_does_not_become_one_without_area(write, make_coco):
    dataset, findings = read(write(make_coco(boxes=[INSIDE, [40, 5, 0.005, 5]])))
    assert len(dataset.annotations) == 1
    assert "left out (annotation 2 (image 1))" in findings.warnings[0]


def test_corners_given_as_width_and_height_are_suspected(write, make_coco):
    path = write(make_coco(boxes=[[20, 10, 35, 28], [30, 20, 38, 29], [1, 1, 5, 5]]))
    assert read(path)[1].warnings[0] == (
        f"{path}: 1 x most boxes reach outside their image; are they corners [x1, y1, x2, y2] "
        "instead of [x, y, width, height]? (2 of 3 boxes)"
    )


def test_missing_area_and_iscrowd_are_filled_in_and_counted(write, make_coco):
    data = make_coco(boxes=[[x, 1, 4, 5] for x in range(4)])
    for annotation in data["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    path = write(data)
    dataset, findings = read(path)
    assert [(annotation.area, annotation.is_crowd) for annotation in dataset.annotations] == [(20, False)] * 4
    places = "annotation 1 (image 1), annotation 2 (image 1), annotation 3 (image 1), …"
    assert findings.warnings == (
        f"{path}: 4 x 'area' was missing or no positive number and was set to width * height ({places})",
        f"{path}: 4 x 'iscrowd' was missing and was set to 0 ({places})",
    )


@pytest.mark.parametrize("area", [0, -3, math.nan, "12"])
def test_a_useless_area_is_replaced(write, make_coco, area):
    dataset, findings = read(write(changed(make_coco(), "annotations", area=area)))
    assert dataset.annotations[0].area == 80
    assert len(findings.warnings) == 1


def test_annotation_id_0_leads_to_new_ids(write, make_coco):
    data = make_coco(boxes=[INSIDE, OTHER])
    data["annotations"][0]["id"] = 0
    data["annotations"][1]["id"] = 5
    path = write(data)
    dataset, findings = read(path)
    assert [annotation.id for annotation in dataset.annotations] == [1, 2]
    assert findings.warnings == (
        f"{path}: 1 x annotation id was below 1, which evaluators lose, so all "
        "annotations were numbered from 1 "
        "(annotation 0)",
    )


def test_repeated_annotation_ids_lead_to_new_ids(write, make_coco):
    data = make_coco(boxes=[INSIDE, OTHER, [1, 1, 3, 3]])
    for annotation, number in zip(data["annotations"], (7, 9, 7), strict=True):
        annotation["id"] = number
    path = write(data)
    dataset, findings = read(path)
    assert [annotation.id for annotation in dataset.annotations] == [1, 2, 3]
    assert findings.warnings == (
        f"{path}: 1 x annotation id came a second time, on which evaluators disagree, so all annotations were numbered "
        "from 1 (annotation 7)",
    )


def test_repeated_files_and_category_names_are_counted(write, make_coco):
    data = make_coco()
    data["images"][1]["file_name"] = "1.png"
    data["categories"][1]["name"] = "cat"
    path = write(data)
    assert read(path)[1].warnings == (
        f"{path}: 1 x image names the same file as another image (image 2)",
        f"{path}: 1 x category has the same name as another category (category 7 'cat')",
    )


# --- what is refused -------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    assert faults(tmp_path / "no.json") == ["expected a JSON file, got 'No such file or directory'. Check the path."]


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe\x00", b"[1" + b"0" * 5000])
def test_truncated_or_no_json(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    (message,) = faults(path)
    assert message.startswith(f"expected valid JSON, got {len(content)} bytes that are none (")
    assert message.endswith("). The file may be truncated: write or download it again.")


FORMAT = "Give an annotation file in COCO's format for object detection."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], f"expected a JSON object with 'images', 'annotations' and 'categories', got a list. {FORMAT}"),
        (
            {"images": 3, "categories": [{}], "annotations": [{}]},
            f"'images': expected a list, got an integer. {FORMAT}",
        ),
        (
            {"images": [{}], "annotations": [{}]},
            f"expected the key 'categories', got the keys ['annotations', 'images']. {FORMAT}",
        ),
    ],
)
def test_other_json(write, data, message):
    assert faults(write(data)) == [message]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_empty_data_set(write, make_coco, key):
    assert faults(write({**make_coco(), key: []})) == [
        f"'{key}': expected at least one entry, got an empty list. Annotate some images first."
    ]


@pytest.mark.parametrize("key", ["images", "categories"])
def test_duplicate_ids(write, make_coco, key):
    data = make_coco()
    data[key].append(data[key][0])
    name = {"images": "image 1", "categories": "category 3"}[key]
    assert faults(write(data)) == [
        f"{name}: expected every id once, got this id a second time. Give it an unused id, or remove it."
    ]


CATEGORIES = "the id of a category in 'categories' (3, 7)"
BOX = "bbox to be 4 finite numbers [x, y, width, height] with width and height not below 0"
REMOVE = "Correct or remove the annotation."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_id": 9},
            "(image 9): expected the id of an image in 'images', got image_id 9. Add the "
            "image or remove the annotation.",
        ),
        (
            {"category_id": 4},
            f"(image 1): expected {CATEGORIES}, got category_id 4. Add the category or remove the annotation.",
        ),
        ({"bbox": [1, 1, -1, 5]}, f"(image 1): expected {BOX}, got [1, 1, -1, 5]. {REMOVE}"),
        ({"bbox": [1, 1, 5, -2.5]}, f"(image 1): expected {BOX}, got [1, 1, 5, -2.5]. {REMOVE}"),
        ({"bbox": [math.nan, 1, 5, 5]}, f"(image 1): expected {BOX}, got [nan, 1, 5, 5]. {REMOVE}"),
        ({"bbox": [1, 1, math.inf, 5]}, f"(image 1): expected {BOX}, got [1, 1, inf, 5]. {REMOVE}"),
        ({"bbox": [1, 1, 5]}, f"(image 1): expected {BOX}, got [1, 1, 5]. {REMOVE}"),
        ({"bbox": [1, 1, "5", 5]}, f"(image 1): expected {BOX}, got [1, 1, '5', 5]. {REMOVE}"),
        ({"bbox": [True, 1, 5, 5]}, f"(image 1): expected {BOX}, got [True, 1, 5, 5]. {REMOVE}"),
        ({"iscrowd": 2}, "(image 1): expected iscrowd to be 0 or 1, got 2. Correct it."),
    ],
)
def test_wrong_annotation(write, make_coco, values, message):
    assert faults(write(changed(make_coco(), "annotations", **values))) == [f"annotation 1 {message}"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        (
            "images",
            {"width": None},
            "image 1: expected the key 'width', got the keys ['file_name', 'height', 'id']. Add it.",
        ),
        (
            "images",
            {"height": 0},
            "image 1: expected positive width and height, got 40x0. Write the size of the image file.",
        ),
        ("images", {"file_name": 5}, "image 1: expected 'file_name' to be text, got 5. Correct it."),
        (
            "annotations",
            {"bbox": None},
            "annotation 1: expected the key 'bbox', got the keys ['area', 'category_id', "
            "'id', 'image_id', 'iscrowd']. Add it.",
        ),
        (
            "annotations",
            {"bbox": "1 1 5 5"},
            "annotation 1: expected 'bbox' to be a list, got '1 1 5 5'. Correct it.",
        ),
        (
            "annotations",
            {"id": True},
            "annotation True: expected 'id' to be an integer, got True. Correct it.",
        ),
        ("categories", {"name": None}, "category 3: expected the key 'name', got the keys ['id']. Add it."),
    ],
)
def test_missing_or_mistyped_key(write, make_coco, key, values, message):
    assert message in faults(write(changed(make_coco(), key, **values)))


def test_an_entry_that_is_no_object_or_has_no_id_is_named_by_its_place(write, make_coco):
    data = make_coco()
    data["images"][1] = None
    del data["categories"][1]["id"]
    assert faults(write(data)) == [
        "images[1]: expected an object, got null. Correct the entry.",
        "categories[1]: expected the key 'id', got the keys ['name']. Add it.",
    ]


def test_many_faults_are_collected_the_first_ten_shown_and_the_rest_counted(write, make_coco):
    messages = faults(write(make_coco(boxes=[[1, 1, -1, number] for number in range(1, 15)])))
    assert len(messages) == 11
    assert messages[0] == f"annotation 1 (image 1): expected {BOX}, got [1, 1, -1, 1]. {REMOVE}"
    assert messages[-1] == "… and 4 more faults."


def test_all_kinds_of_faults_are_found_at_once(write, make_coco):
    data = make_coco()
    data["annotations"][0].update(image_id=9, category_id=4, bbox=[1, 1, -1, 0], iscrowd="yes")
    assert len(faults(write(data))) == 4


def test_long_lists_of_category_ids_are_shortened(write, make_coco):
    data = changed(make_coco(), "annotations", category_id=99)
    data["categories"] = [{"id": number, "name": str(number)} for number in range(1, 13)]
    assert "(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …), got category_id 99" in faults(write(data))[0]


def test_bytes_with_a_byte_order_mark_are_read(tmp_path, make_coco):
    path = tmp_path / "train.json"
    path.write_bytes(json.dumps(make_coco()).encode("utf-8-sig"))
    assert len(read(path)[0].images) == 2
