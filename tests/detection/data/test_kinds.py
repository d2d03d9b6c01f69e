"""Every kind of dirt, made once: found, treated by training as the policy says, repaired as the table promises."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.check import check_file, check_splits, load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.images import MAX_PIXELS
from sparsedet.detection.data.kinds import KINDS, Policy
from sparsedet.detection.data.repair import repair

WIDTH, HEIGHT = 40, 30
DOCS = Path(__file__).parents[3] / "docs" / "data.md"
NOT_FROM_ONE_FILE = {"image-in-both-splits", "image-nearly-in-both-splits", "categories-differ", "category-unused"}
# What is only seen when the image is decoded: training stops at the image, not before the first step.
FROM_PIXELS = {"image-damaged", "image-size-wrong", "image-rotated"} | {
    f"image-{mode}" for mode in ("grayscale", "cmyk", "16-bit", "palette", "alpha")
}


@pytest.fixture
def root(tmp_path):
    """Folder of a clean data set: 4 + 4 images of noise, 12 boxes of two categories in each split."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for split, first in (("train", 1), ("val", 11)):
        images = [
            {"id": first + index, "file_name": f"{split}-{index}.png", "width": WIDTH, "height": HEIGHT}
            for index in range(4)
        ]
        for image in images:
            pixels = np.random.default_rng(image["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / image["file_name"])
        annotations = [
            {
                "id": number + 1,
                "image_id": first + number // 3,
                "category_id": 1 + number % 2,
                "bbox": [20.0 - number, 15, 10, 8.5],
                "area": 85.0,
                "iscrowd": 0,
                "segmentation": [[1, 2, 3, 4, 5, 6]],
            }
            for number in range(12)
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def first_image(root, **values):
    """Return what changes the first image's entry."""
    return lambda data: data["images"][0].update(values)


def first_annotation(**values):
    return lambda data: data["annotations"][0].update(values)


def without(key, name):
    return lambda data: data[key][0].pop(name)


def again(key, **values):
    return lambda data: data[key].append({**data[key][0], **values})


def saved_as(**options):
    """Return what saves the first image again in another mode or with other options."""

    def change(data, root):
        mode, suffix = options.get("mode", "RGB"), options.get("suffix", ".png")
        path = root / "images" / data["images"][0]["file_name"]
        image = Image.open(path)
        new = path.with_suffix(suffix)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(new, **options.get("save", {}))
        data["images"][0]["file_name"] = new.name

    return change


def exif_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def rotated(data, root):
    path = root / "images" / "turned.jpg"
    Image.new("RGB", (HEIGHT, WIDTH), "red").save(path, exif=exif_orientation(6))
    data["images"][0]["file_name"] = path.name


def linked_outside(data, root):
    (root / "secret.png").write_bytes((root / "images" / "train-0.png").read_bytes())
    (root / "images" / "train-0.png").unlink()
    (root / "images" / "train-0.png").symlink_to(root / "secret.png")


def in_a_linked_folder(data, root):
    (root / "elsewhere").mkdir()
    (root / "images" / "train-0.png").rename(root / "elsewhere" / "a.png")
    (root / "images" / "linked").symlink_to(root / "elsewhere")
    data["images"][0]["file_name"] = "linked/a.png"


def truncated(data, root):
    path = root / "images" / "train-0.png"
    path.write_bytes(path.read_bytes()[:-40])


def corners(data, root=None):
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]


def relative(data, root=None):
    for annotation in data["annotations"]:
        annotation["bbox"] = [value / 100 for value in annotation["bbox"]]


def mostly_outside(data, root=None):
    for annotation in data["annotations"][:7]:
        annotation["bbox"][2] = 30


def with_gap(data, root=None):
    data["categories"][1]["id"] = 90
    for annotation in data["annotations"]:
        annotation["category_id"] = {1: 1, 2: 90}[annotation["category_id"]]


def crowd_only(data, root=None):
    for annotation in data["annotations"]:
        annotation["iscrowd"] = int(annotation["category_id"] == 2)


def renamed(data, root):
    (root / "images" / "train-0.png").rename(root / "images" / "图像 é.png")
    data["images"][0]["file_name"] = "图像 é.png"


# (kind, what makes it, how often it is found, kinds that come with it)
DIRT = [
    ("file", lambda data: data.pop("categories"), 1, ()),
    ("file", lambda data: data["annotations"].clear(), 1, ()),
    ("image-entry", without("images", "width"), 1, ()),
    ("image-entry", without("images", "file_name"), 1, ()),
    ("image-entry", without("images", "id"), 1, {"annotation-image"}),
    ("image-entry", lambda data: data["images"][0].update(height=0), 1, ()),
    ("image-entry", lambda data: data["images"][0].update(id=2**63), 1, {"annotation-image"}),
    ("image-entry", lambda data: data["images"][0].update(id=-1), 1, {"annotation-image"}),
    ("image-entry", lambda data: data["images"][0].update(file_name="\ud800.png"), 1, ()),
    ("image-id-repeated", again("images"), 1, {"ids-unsorted"}),
    ("image-id-repeated", again("images", file_name="train-1.png"), 1, {"ids-unsorted"}),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="../secret.png"), 1, ()),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="../images/train-0.png"), 1, ()),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="/etc/passwd"), 1, ()),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="C:\\train-0.png"), 1, ()),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="a\\..\\..\\train-0.png"), 1, ()),
    ("image-name-unsafe", lambda data: data["images"][0].update(file_name="a\0.png"), 1, ()),
    ("image-name-unsafe", linked_outside, 1, ()),
    ("image-name-unsafe", in_a_linked_folder, 1, ()),
    ("image-too-large", lambda data: data["images"][0].update(width=MAX_PIXELS), 1, ()),
    ("image-missing", lambda data: data["images"][0].update(file_name="gone.png"), 1, ()),
    ("image-missing", lambda data: data["images"][0].update(file_name="Train-0.PNG"), 1, ()),
    ("image-damaged", truncated, 1, ()),
    ("image-damaged", saved_as(mode="F", suffix=".tif"), 1, ()),
    ("image-size-wrong", lambda data: data["images"][0].update(width=WIDTH + 1), 1, ()),
    ("image-file-shared", lambda data: data["images"][0].update(file_name="train-1.png"), 1, ()),
    ("image-rotated", rotated, 1, ()),
    ("image-grayscale", saved_as(mode="L"), 1, ()),
    ("image-grayscale", saved_as(mode="LA"), 1, ()),
    ("image-cmyk", saved_as(mode="CMYK", suffix=".jpg"), 1, ()),
    ("image-16-bit", saved_as(mode="I;16"), 1, ()),
    ("image-palette", saved_as(mode="P"), 1, ()),
    ("image-alpha", saved_as(mode="RGBA"), 1, ()),
    ("image-name-unicode", renamed, 1, ()),
    ("image-empty", lambda data: data["annotations"].__delitem__(slice(3)), 1, ()),
    ("ids-unsorted", lambda data: data["images"].reverse(), 1, ()),
    ("ids-unsorted", lambda data: data["annotations"].reverse(), 1, ()),
    ("id-zero", lambda data: data["categories"][0].update(id=0), 1, {"annotation-category", "category-id-gaps"}),
    ("annotation-id-below-1", first_annotation(id=0), 1, ()),
    ("annotation-id-below-1", first_annotation(id=-7), 1, ()),
    ("annotation-id-repeated", first_annotation(id=2), 1, ()),
    ("category-entry", without("categories", "name"), 1, {"annotation-category"}),
    ("category-entry", lambda data: data["categories"][0].update(id=-1), 1, {"annotation-category"}),
    ("category-id-repeated", again("categories"), 1, {"ids-unsorted"}),
    ("category-id-repeated", again("categories", name="cow"), 1, {"ids-unsorted"}),
    ("category-name-shared", lambda data: data["categories"][0].update(name="dog"), 1, ()),
    ("category-id-gaps", with_gap, 1, ()),
    ("annotation-entry", without("annotations", "bbox"), 1, ()),
    ("annotation-entry", lambda data: data["annotations"].append(None), 1, ()),
    ("annotation-image", first_annotation(image_id=99), 1, ()),
    ("annotation-category", first_annotation(category_id=99), 1, ()),
    ("box-invalid", first_annotation(bbox=[math.nan, 1, 2, 3]), 1, ()),
    ("box-invalid", first_annotation(bbox=[5, 5, -2, 3]), 1, ()),
    ("box-invalid", first_annotation(bbox=[10**400, 1, 2, 3]), 1, ()),
    ("iscrowd-invalid", first_annotation(iscrowd="no"), 1, ()),
    ("boxes-corners", corners, 1, {"box-clipped", "box-outside"}),
    ("boxes-relative", relative, 1, ()),
    ("boxes-mostly-outside", mostly_outside, 1, {"box-clipped"}),
    ("box-empty", first_annotation(bbox=[5, 5, 0, 4]), 1, ()),
    ("box-outside", first_annotation(bbox=[50, 5, 4, 4]), 1, ()),
    ("box-clipped", first_annotation(bbox=[-5, 5, 45 + 5, 4]), 1, ()),
    ("box-repeated", again("annotations", id=13), 1, ()),
    ("area-missing", without("annotations", "area"), 1, ()),
    ("area-missing", first_annotation(area=math.nan), 1, ()),
    ("iscrowd-missing", without("annotations", "iscrowd"), 1, ()),
    ("crowd", first_annotation(iscrowd=1), 1, ()),
]


def make_dirty(root, change, split="train"):
    path = root / "annotations" / f"{split}.json"
    data = json.loads(path.read_text())
    change(data, root) if change.__code__.co_argcount == 2 else change(data)
    path.write_text(json.dumps(data))
    return path


def found(split):
    return {finding.kind: finding.count for finding in split.findings.found}


def ids(dirt):
    return [f"{kind}-{number}" for number, (kind, *_) in enumerate(dirt)]


@pytest.mark.parametrize(("kind", "change", "count", "others"), DIRT, ids=ids(DIRT))
def test_check_finds_it_and_nothing_else(root, kind, change, count, others):
    assert not found(check_file(root / "annotations/train.json", root / "images"))
    counts = found(check_file(make_dirty(root, change), root / "images"))
    assert counts.pop(kind) == count
    assert set(counts) <= set(others)


@pytest.mark.parametrize(("kind", "change", "count", "others"), DIRT, ids=ids(DIRT))
def test_training_does_what_the_policy_says(root, kind, change, count, others):
    path = make_dirty(root, change)
    config = DataConfig(root=root)
    policies = {KINDS[name].policy for name in (kind, *others)}
    if KINDS[kind].policy is Policy.REFUSE and kind not in FROM_PIXELS:
        with pytest.raises(DatasetError) as raised:
            load_splits(config)
        assert str(raised.value).startswith(str(path))
        return
    if Policy.REFUSE in policies - {KINDS[kind].policy}:
        return  # what comes with it is refused, and has its own row
    dataset, warnings = load_train(config, root)
    samples = DetectionDataset(dataset, config, is_train=True)
    if KINDS[kind].policy is Policy.REFUSE:
        with pytest.raises(DatasetError, match=re.escape(str(root / "images"))):
            samples[0, 0]
        return
    assert all(samples[0, index].image.isfinite().all() for index in range(len(samples)))
    told = KINDS[kind].policy in (Policy.REPAIR, Policy.WARN) and kind not in FROM_PIXELS
    assert any(KINDS[kind].what in warning for warning in warnings) == told
    assert len(warnings) <= told + len(others)


def load_train(config, root):
    """Return the training split and its warnings, beside a validation split with the same categories."""
    path, val = (root / "annotations" / f"{name}.json" for name in ("train", "val"))
    categories = json.loads(path.read_text())["categories"]
    content = json.loads(val.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = categories[0]["id"]
    val.write_text(json.dumps({**content, "categories": categories}))
    train, _, warnings = load_splits(config)
    return train, [warning for warning in warnings if warning.startswith(str(path))]


@pytest.mark.parametrize(("kind", "change", "count", "others"), DIRT, ids=ids(DIRT))
def test_the_repaired_copy_is_as_the_table_promises(root, kind, change, count, others):
    path = make_dirty(root, change)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    split = check_file(path, root / "images")
    if kind == "file":
        with pytest.raises(DatasetError):
            repair(split)
        return
    result = repair(split)
    copy = root / "annotations" / "copy.json"
    copy.write_text(json.dumps(result.data))
    again = check_file(copy, root / "images")
    leaves = not KINDS[kind].fix or (kind.endswith("-id-repeated") and kind in found(again))
    assert (kind in found(again)) == leaves
    if leaves:
        assert not result.changes or others
    else:
        assert result.changes
        assert not again.findings.faults
    assert result.data["info"] == {"year": 2026}
    assert all("segmentation" in annotation for annotation in result.data["annotations"])
    assert {file: file.read_bytes() for file in before} == before
    once_more = repair(again)
    assert once_more.changes == ()
    assert once_more.data == result.data


def test_every_kind_has_a_test():
    assert {kind for kind, *_ in DIRT} | NOT_FROM_ONE_FILE == set(KINDS)


def test_kinds_between_the_splits(root):
    def other_categories(data):
        data["categories"][0]["name"] = "cow"
        data["images"][0]["file_name"] = "train-0.png"
        data["images"][1]["file_name"] = "again.jpg"

    Image.open(root / "images/train-1.png").resize((WIDTH * 4, HEIGHT * 4)).resize((WIDTH, HEIGHT)).save(
        root / "images/again.jpg", quality=90
    )
    make_dirty(root, other_categories, "val")
    make_dirty(root, crowd_only)
    train, val = check_splits(DataConfig(root=root))
    assert found(train) == {"category-unused": 1, "crowd": 6}
    assert found(val) == {"image-in-both-splits": 1, "image-nearly-in-both-splits": 1, "categories-differ": 1}
    (finding,) = (finding for finding in val.findings.found if finding.kind == "image-nearly-in-both-splits")
    assert str(finding).endswith("(again.jpg like train-1.png)")
    with pytest.raises(DatasetError, match="expected the categories of"):
        load_splits(DataConfig(root=root))


@pytest.mark.skipif(os.name == "nt", reason="would prove that a pipe with an image's name does not hang the check")
def test_a_pipe_instead_of_an_image_is_missing(root):
    (root / "images/train-0.png").unlink()
    os.mkfifo(root / "images/train-0.png")
    assert found(check_file(root / "annotations/train.json", root / "images")) == {"image-missing": 1}


def test_the_table_in_the_documentation_is_that_of_the_program():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| (.*) \| (.*) \|$", DOCS.read_text(), flags=re.MULTILINE)
    assert rows == [(name, kind.policy, kind.what, kind.fix or "stays as it is") for name, kind in KINDS.items()]


def test_a_wrong_size_leaves_the_boxes_in_the_copy(root):
    path = make_dirty(root, lambda data: data["images"][0].update(width=20))
    split = check_file(path, root / "images")
    assert found(split) == {"image-size-wrong": 1, "box-clipped": 2, "box-outside": 1}
    assert repair(split).data == json.loads(path.read_text())


def test_new_ids_are_unused_and_other_ids_stay(root):
    def change(data):
        for annotation, number in zip(data["annotations"], [5, 5, 0, 1, 2, 2], strict=False):
            annotation["id"] = number
        data["annotations"][2]["bbox"] = [5, 5, 0, 5]

    path = make_dirty(root, change)
    data = repair(check_file(path, root / "images")).data
    assert [annotation["id"] for annotation in data["annotations"]] == [5, 3, 1, 2, 4, *range(7, 13)]


def test_changes_are_told(root):
    def change(data):
        data["images"][0]["file_name"] = "gone.png"
        data["annotations"][3].update(bbox=[-5, 5, 25, 4])
        data["annotations"][4].update(bbox=[5, 5, 0, 4])
        del data["annotations"][5]["iscrowd"]

    assert repair(check_file(make_dirty(root, change), root / "images")).changes == (
        "image 1: gone.png removed with 3 annotations, image-missing",
        "annotation 4: bbox [-5, 5, 25, 4] -> [0.0, 5.0, 20.0, 4.0], area 85.0 -> 80.0",
        "annotation 5: removed, box-empty",
        "annotation 6: iscrowd missing -> 0",
    )


def test_the_size_of_an_image_is_taken_from_the_file(root):
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "images/train-0.png", exif=exif_orientation(6))
    path = make_dirty(root, without("images", "width"))
    result = repair(check_file(path, root / "images"))
    assert result.changes == (f"image 1: width and height set to {WIDTH}x{HEIGHT} as the file has them",)
    assert (result.data["images"][0]["width"], result.data["images"][0]["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Train-0.PNG", "train-0.png"),
        (".\\train-0.png", "train-0.png"),
        ("sub\\b.png", "sub/b.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("./train-0.png", "./train-0.png"),
        ("sub/../train-0.png", "train-0.png"),
        ("{images}/sub/b.png", "sub/b.png"),
        ("{root}/annotations/train.json", None),
        ("../other.png", None),
        ("gone.png", None),
    ],
)
def test_names_are_corrected_where_one_file_is_meant(root, given, name):
    (root / "images/sub").mkdir()
    for copy in ("sub/b.png", "\u00e9.png"):
        (root / "images" / copy).write_bytes((root / "images/train-0.png").read_bytes())
    given = given.format(images=root / "images", root=root)
    path = make_dirty(root, lambda data: data["images"][0].update(file_name=given))
    images = repair(check_file(path, root / "images")).data["images"]
    assert ([image["file_name"] for image in images if image["id"] == 1] or [None]) == [name]


def test_links_inside_the_folder_and_a_folder_that_is_a_link_are_followed(root):
    (root / "images").rename(root / "real")
    (root / "images").symlink_to(root / "real")
    (root / "real/again.png").symlink_to(root / "real/train-0.png")
    path = make_dirty(root, lambda data: data["images"][0].update(file_name="again.png"))
    assert not found(check_file(path, root / "images"))
