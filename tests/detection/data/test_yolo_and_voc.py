"""Round trips, files as other programs write them, and what is refused."""

import json
import os
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sparsedet.common.errors import DatasetError, MissingExtraError, StorageError
from sparsedet.detection.data.coco import read_coco
from sparsedet.detection.data.voc import from_voc, to_voc
from sparsedet.detection.data.yolo import from_yolo, to_yolo

pytest.importorskip("globox", reason="would prove that YOLO and Pascal VOC are converted rightly")


@pytest.fixture
def dataset(write, make_coco, tmp_path):
    """Three images, one in a folder of its own, with odd boxes, a crowd, and names that need quoting."""
    data = make_coco(images=3, boxes=[[0, 0, 40, 30], [1.25, 2.5, 7, 3.125], [12, 9, 1, 1], [3, 3, 9, 9]])
    data["images"][2]["file_name"] = "sub/é 3.png"
    data["categories"] = [{"id": 3, "name": "it's: a <cat>"}, {"id": 7, "name": "dog & co"}]
    for annotation, image, category in zip(data["annotations"], (1, 3, 3, 1), (3, 7, 3, 7), strict=True):
        annotation.update(image_id=image, category_id=category)
    data["annotations"][3]["iscrowd"] = 1
    for image in data["images"]:
        path = tmp_path / "out/images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    return read_coco(write(data), tmp_path / "out/images")[0]


def rows(data):
    """Return (file, category, box, crowd) of all annotations, in order."""
    files = {image["id"]: image["file_name"] for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}
    return sorted((files[a["image_id"]], names[a["category_id"]], a["bbox"], a["iscrowd"]) for a in data["annotations"])


def test_yolo_and_back(dataset, tmp_path):
    there = to_yolo({"train": dataset})
    assert there.notes[0] == "1 crowds were left out: YOLO has none, so they become background"
    there.write(tmp_path / "out")
    text = (tmp_path / "out/labels/sub/é 3.txt").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"1 {(1.25 + 3.5) / 40} {(2.5 + 3.125 / 2) / 30} {7 / 40} {3.125 / 30}"
    assert (tmp_path / "out/labels/2.txt").read_text() == ""
    back = from_yolo(tmp_path / "out/data.yaml")
    assert back.images_dir == tmp_path / "out"
    data = json.loads(back.files["train.json"])
    assert [(image["file_name"], image["width"], image["height"]) for image in data["images"]] == [
        ("images/1.png", 40, 30),
        ("images/2.png", 40, 30),
        ("images/sub/é 3.png", 40, 30),
    ]
    assert data["categories"] == [{"id": 1, "name": "it's: a <cat>"}, {"id": 2, "name": "dog & co"}]
    expected = [row for row in rows(dataset.ground_truth()) if not row[3]]
    assert [(f"images/{name}", *rest) for name, *rest in expected] == rows(data)
    (tmp_path / "back.json").write_text(back.files["train.json"])
    assert read_coco(tmp_path / "back.json", tmp_path / "out")[1].warnings == ()


def test_voc_and_back(dataset, tmp_path):
    to_voc({"val": dataset}).write(tmp_path / "voc")
    root = ElementTree.parse(tmp_path / "voc/Annotations/sub/é 3.xml").getroot()
    assert [side.text for side in root.find("object/bndbox")] == ["1.25", "2.5", "8.25", "5.625"]
    assert [side.text for side in root.findall("object")[1].find("bndbox")] == ["12", "9", "13", "10"]
    back = from_voc(tmp_path / "voc", tmp_path / "images")
    assert back.notes == ["1 difficult objects became crowds: neither right nor wrong"]
    data = json.loads(back.files["val.json"])
    assert rows(data) == rows(dataset.ground_truth())
    assert data["categories"] == [{"id": 1, "name": "dog & co"}, {"id": 2, "name": "it's: a <cat>"}]


def test_files_are_not_overwritten(dataset, tmp_path):
    (tmp_path / "x/labels").mkdir(parents=True)
    (tmp_path / "x/labels/2.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"--output: expected a folder without labels/2\.txt"):
        to_yolo({"train": dataset}).write(tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").rglob("*.*")] == ["2.txt"]


def test_two_images_of_one_stem(write, make_coco):
    data = make_coco()
    data["images"][1]["file_name"] = "1.jpg"
    path = write(data)
    dataset = read_coco(path, path.parent)[0]
    for convert in (to_yolo, to_voc):
        with pytest.raises(DatasetError, match="two whose names differ in the suffix only"):
            convert({"train": dataset})


@pytest.fixture
def yolo(tmp_path):
    """A YOLO data set as Ultralytics describes it: a folder for each split, and one turned photograph."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(tmp_path / "images" / split / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "images/train/turned.jpg", exif=exif)
    (tmp_path / "images/train/notes.md").write_text("no image")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1\r\n")
    (tmp_path / "labels/train/turned.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: [images/val]\nnames: [cat, dog]\nnc: 2\n")
    return tmp_path


def test_a_yolo_data_set_of_folders(yolo):
    files = from_yolo(yolo / "data.yaml").files
    train, val = (json.loads(files[f"{name}.json"]) for name in ("train", "val"))
    assert rows(train) == [
        ("images/train/a.jpg", "cat", [0, 0, 100, 100], 0),
        ("images/train/a.jpg", "dog", [80, 30, 40, 40], 0),
        ("images/train/turned.jpg", "cat", [0, 0, 100, 200], 0),
    ]
    assert [image["file_name"] for image in val["images"]] == ["images/val/a.jpg"]


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("0 0.5 0.5 0.2", "0 0.5 0.5 0.2"),
        ("2 0.5 0.5 0.2 0.2", "2 0.5 0.5 0.2 0.2"),
        ("-1 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2"),
        ("0 0.5 0.5 0.2 nan", "0 0.5 0.5 0.2 nan"),
        ("0 0.5 0.5 0.2 -0.2", "0 0.5 0.5 0.2 -0.2"),
        ("0 0.5 0.5 0.2 x", "0 0.5 0.5 0.2 x"),
        ("0 0.5 0.5 0.2 0.2 0.9", "0 0.5 0.5 0.2 0.2 0.9"),
        ("cat 0.5 0.5 0.2 0.2", "cat 0.5 0.5 0.2 0.2"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2"),
    ],
)
def test_wrong_lines_are_named(yolo, line, got):
    path = yolo / "labels/train/a.txt"
    path.write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DatasetError) as raised:
        from_yolo(yolo / "data.yaml")
    assert str(raised.value) == (
        f"{path}: line 2: expected a class of 0 to 1 and the numbers centre x, centre y, width, height in [0, 1], "
        f"got '{got}'. Correct it."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]\nval: ../images", "expected a path below"),
        ("names: [a]\nval: /etc", "expected a path below"),
        ("names: [a]\nval: labels", "expected images in labels below"),
        ("names: [a]", "expected one of the keys train, val, test, got ['names']"),
        ("names: 3\nval: images", "names: expected a list of class names, or a name for each number, got 3"),
        ("names: {x: a}\nval: images", "names: expected a list of class names"),
        ("- 1", "expected keys such as train, val and names, got none"),
        ("names: !!python/object/apply:os.system ['touch pwned']\nval: images", "expected YAML, got something else"),
        ("a: [", "expected YAML, got something else"),
        ("a: &a [x]\na: 2", "expected YAML, got something else"),
    ],
)
def test_wrong_data_yaml(yolo, text, message, monkeypatch):
    monkeypatch.chdir(yolo)
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DatasetError) as raised:
        from_yolo(yolo / "data.yaml")
    assert message in str(raised.value)
    assert not (yolo / "pwned").exists()


def test_huge_text_files_are_not_read(yolo):
    path = yolo / "labels/train/a.txt"
    with path.open("wb") as stream:
        stream.truncate(2**26 + 1)
    with pytest.raises(DatasetError, match=f"expected a text file of at most {2**26} bytes, got {2**26 + 1}"):
        from_yolo(yolo / "data.yaml")


VOC = """<annotation><folder>JPEGImages</folder><filename>a.jpg</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(VOC)
    return tmp_path


def test_a_voc_data_set_without_lists(voc):
    data = json.loads(from_voc(voc, voc / "JPEGImages").files["all.json"])
    assert rows(data) == [("a.jpg", "dog", [1, 2, 10, 20], 0)]


def test_lists_of_voc(voc):
    lists = voc / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "dog_train.txt").write_text("a  1\n")
    assert list(from_voc(voc, voc).files) == ["train.json"]
    (lists / "val.txt").write_text("../../etc/a\n")
    with pytest.raises(DatasetError, match=r"expected names below Annotations, got '\.\./\.\./etc/a'"):
        from_voc(voc, voc)
    (lists / "val.txt").write_text("gone\n")
    with pytest.raises(DatasetError, match=r"gone\.xml: expected a text file in UTF-8, got 'No such file"):
        from_voc(voc, voc)


def test_devices_and_pipes_are_not_read(voc):
    (voc / "Annotations/a.xml").unlink()
    (voc / "Annotations/a.xml").symlink_to(os.devnull)
    with pytest.raises(DatasetError, match=r"a\.xml: expected a text file in UTF-8, got no ordinary file\. Check the"):
        from_voc(voc, voc)


BOMB = (
    "<!DOCTYPE a [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
    + "]><annotation><filename>&a11;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "expected XML, got something else"),
        (VOC.replace("<filename>a.jpg</filename>", ""), "expected filename, and width and height in size"),
        (VOC.replace("50", "x"), "expected filename, and width and height in size"),
        (VOC.replace("<xmin>1</xmin>", ""), "object 0: expected a name, and xmin, ymin, xmax, ymax in bndbox"),
        (VOC.replace("<xmin>1<", "<xmin>99<"), "object 0: expected a name, and xmin, ymin, xmax, ymax in bndbox"),
        (VOC.replace("<xmin>1<", "<xmin>-inf<"), "object 0: expected a name, and xmin, ymin, xmax, ymax in bndbox"),
        (VOC.replace("<xmin>1<", "<xmin>nan<"), "object 0: expected a name, and xmin, ymin, xmax, ymax in bndbox"),
        (BOMB, "expected XML, got something else"),
        (
            "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>" + VOC.replace("a.jpg", "&x;"),
            "expected XML, got something else",
        ),
    ],
)
def test_wrong_xml(voc, text, message):
    (voc / "Annotations/a.xml").write_text(text)
    with pytest.raises(DatasetError) as raised:
        from_voc(voc, voc)
    assert str(raised.value).startswith(str(voc / "Annotations/a.xml"))
    assert message in str(raised.value)


def test_the_missing_extra_is_named(dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "globox", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsedet\[convert\]'"):
        to_yolo({"train": dataset})
