import pytest
from PIL import Image

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.check import check_splits, load_splits
from sparsedet.detection.data.config import DataConfig, SplitConfig


def faults(function, config):
    with pytest.raises(DatasetError) as raised:
        function(config)
    return str(raised.value).split("\n")


def reports(config):
    return tuple(split.report() for split in check_splits(config))


def kinds(split):
    return {finding.kind: finding.count for finding in split.report().findings}


def copy_of(data, **lists):
    """Return another data set with other file names and these lists in place of its own."""
    images = [{**image, "file_name": f"val-{image['file_name']}"} for image in data["images"]]
    return {**data, "images": images, **lists}


def test_report_of_a_clean_data_set(make_root, make_coco):
    data = make_coco(images=3, boxes=[[0, 0, 40, 30], [0, 0, 5, 5], [1, 1, 5, 5]])
    data["annotations"][1]["category_id"] = 7
    data["annotations"][2]["iscrowd"] = 1
    root = make_root(data)
    train, val = reports(DataConfig(root=root))
    assert (train.name, val.name) == ("train", "val")
    assert val.annotations == str(root / "annotations/val.json")
    assert (train.num_images, train.num_images_without_annotations) == (3, 2)
    assert (train.num_boxes, train.num_crowds) == (2, 1)
    assert train.boxes_per_category == {"cat": 1, "dog": 1}
    assert train.boxes_per_size == {"small": 1, "medium": 1, "large": 0}
    assert [finding.kind for finding in train.findings] == ["image-empty", "category-id-gaps", "crowd"]
    assert load_splits(DataConfig(root=root))[2] == train.warnings == train.faults == ()


@pytest.mark.parametrize(
    ("area", "size"),
    [(1, "small"), (1023.9, "small"), (1024, "medium"), (9215.9, "medium"), (9216, "large")],
)
def test_sizes_are_those_of_coco(make_root, make_coco, area, size):
    data = make_coco()
    data["annotations"][0]["area"] = area
    sizes = reports(DataConfig(root=make_root(data)))[0].boxes_per_size
    assert [name for name, number in sizes.items() if number] == [size]


def test_splits_with_their_own_folders(make_root, make_coco, tmp_path):
    root = make_root(make_coco())
    (root / "images").rename(root / "pictures")
    (root / "annotations/val.json").rename(root / "test.json")
    config = DataConfig(
        root=root,
        train=SplitConfig(annotations="annotations/train.json", images="pictures"),
        val=SplitConfig(annotations="test.json", images="pictures"),
    )
    assert reports(config)[1].num_images == 2


def test_categories_in_another_order_match(make_root, make_coco):
    data = make_coco()
    root = make_root(data, copy_of(data, categories=list(reversed(data["categories"]))))
    _, val = reports(DataConfig(root=root))
    assert list(val.boxes_per_category) == ["cat", "dog"]
    assert not val.faults


@pytest.mark.parametrize(
    ("categories", "there", "here"),
    [
        ([{"id": 3, "name": "cat"}, {"id": 7, "name": "cow"}], "7 = 'dog'", "7 = 'cow'"),
        ([{"id": 3, "name": "cat"}], "7 = 'dog'", "7 = 'nothing'"),
        (
            [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
            "3 = 'cat', 7 = 'dog'",
            "3 = 'dog', 7 = 'cat'",
        ),
        (
            [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
            "7 = 'dog', 8 = 'nothing'",
            "7 = 'nothing', 8 = 'dog'",
        ),
    ],
    ids=["renamed", "missing", "swapped", "other id"],
)
def test_categories_are_compared_by_name_and_id(make_root, make_coco, categories, there, here):
    data = make_coco()
    root = make_root(data, copy_of(data, categories=categories))
    assert faults(load_splits, DataConfig(root=root)) == [
        f"{root}/annotations/val.json: 'categories': expected the categories of "
        f"{root}/annotations/train.json, "
        f"there {there}, got here {here}. Give both files the same category ids and names."
    ]


def test_both_annotation_files_are_looked_at(make_root, make_coco):
    root = make_root(make_coco())
    (root / "annotations/train.json").unlink()
    (root / "annotations/val.json").write_text("[")
    first, second = faults(load_splits, DataConfig(root=root))
    assert first.startswith(f"{root}/annotations/train.json: expected a JSON file, got 'No such file")
    assert second.startswith(f"{root}/annotations/val.json: expected valid JSON, got 1 bytes")


def all_faults(config):
    train, val = check_splits(config)
    return [*train.findings.faults, *val.findings.faults]


@pytest.mark.parametrize("function", [all_faults, lambda config: faults(load_splits, config)])
def test_missing_image_files(make_root, make_coco, function):
    root = make_root(make_coco(images=6))
    for number in (1, 2, 4, 5):
        (root / f"images/{number}.png").unlink()
    assert function(DataConfig(root=root)) == [
        f"{root}/annotations/train.json: expected 6 image files in {root}/images, got 4 missing "
        "(1.png, 2.png, 4.png, …). Check the key 'images' of the split and the file "
        "names in the annotation file."
    ]


def test_check_decodes_every_image_and_load_splits_none(make_root, make_coco):
    root = make_root(make_coco(images=3))
    (root / "images/1.png").write_bytes(b"broken")
    Image.new("RGB", (40, 31)).save(root / "images/3.png")
    Image.new("RGB", (41, 30)).save(root / "images/val-2.png")
    load_splits(DataConfig(root=root))
    messages = all_faults(DataConfig(root=root))
    assert [message.split(": expected ")[0] for message in messages] == [
        f"{root}/images/{name}.png" for name in ("1", "3", "val-2")
    ]
    assert "expected 40x30 pixels (width x height) as the annotation file records, got 40x31" in messages[1]


def test_rotated_images_are_counted(make_root, make_coco):
    root = make_root(make_coco())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(root / "images/2.png", exif=exif)
    assert reports(DataConfig(root=root))[0].warnings[0] == (
        f"{root}/annotations/train.json: 1 x image carries an EXIF orientation; "
        "it is applied where the recorded size allows it (2.png)"
    )


def test_images_in_both_splits_and_categories_without_boxes_are_counted(make_root, make_coco):
    data = make_coco()
    data["annotations"].append({**data["annotations"][0], "id": 2, "category_id": 7, "iscrowd": 1})
    root = make_root(data, data)
    train, val = reports(DataConfig(root=root))
    assert train.warnings + val.warnings == (
        f"{root}/annotations/train.json: 1 x category has no box to learn from (category 7 'dog')",
        f"{root}/annotations/val.json: 2 x image is also in the training split, so the "
        "evaluation is too good "
        "(1.png, 2.png)",
    )


def test_warnings_of_reading_are_passed_on(make_root, make_coco):
    root = make_root(make_coco(boxes=[[1, 1, 5, 5], [35, 1, 10, 5], [1, 1, 5, 6]]))
    warnings = [w for w in load_splits(DataConfig(root=root))[2] if "clipped" in w]
    assert [warning.split(":")[0] for warning in warnings] == [
        f"{root}/annotations/train.json",
        f"{root}/annotations/val.json",
    ]
