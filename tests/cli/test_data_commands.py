"""The data commands as a user meets them: output, files, exit codes."""

import json

import pytest
from PIL import Image


@pytest.fixture
def dirty(tiny_data, tmp_path):
    """A copy of the tiny training split with a fault, a repair and a note; its images stay where they are."""
    data = json.loads((tiny_data / "annotations/train.json").read_text())
    data["annotations"][0]["bbox"] = [float("nan"), 1, 2, 3]
    data["annotations"][1]["bbox"] = [-5, 1, 20, 20]
    path = tmp_path / "dirty.json"
    path.write_text(json.dumps(data))
    return path


def test_check_of_a_recipe(tiny_recipe, sparsedet):
    done = sparsedet("data", "check", tiny_recipe)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 images (1 without annotations), 10 boxes, 0 crowds" in done.stdout
    assert "accept image-empty: 1 x image has no annotation; it is background (image 15)" in done.stdout
    assert done.stdout.endswith("no faults found\n")
    train, val = json.loads(sparsedet("data", "check", tiny_recipe, "--json").stdout)
    assert val["boxes_per_category"] == {"bright": 4, "dark": 4}
    assert [finding["kind"] for finding in train["findings"]] == ["image-empty", "ids-unsorted", "category-id-gaps"]


def test_check_of_a_file_with_faults(dirty, tiny_data, tmp_path, sparsedet):
    images = tiny_data / "images"
    done = sparsedet("data", "check", dirty, "--images", images, "--pictures", tmp_path / "found.jpg")
    assert done.returncode == 1
    assert "refuse box-invalid: 1 x box is not 4 finite numbers" in done.stdout
    assert f"fault: {dirty}: annotation 1 (image 10): expected bbox to be 4 finite numbers" in done.stdout
    assert done.stdout.endswith("1 fault: training refuses these data\n")
    with Image.open(tmp_path / "found.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width > 6 * 256
    (report,) = json.loads(sparsedet("data", "check", dirty, "--images", images, "--json").stdout)
    assert len(report["faults"]) == 1
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert found["box-invalid"]["policy"] == "refuse"
    assert found["box-invalid"]["examples"] == [
        {"text": "annotation 1 (image 10)", "image_id": 10, "bbox": None, "twin": None}
    ]


def test_fix_writes_a_copy_that_passes(dirty, tiny_data, tmp_path, sparsedet):
    before = dirty.read_bytes()
    arguments = ("data", "check", dirty, "--images", tiny_data / "images", "--fix", tmp_path / "copy.json")
    done = sparsedet(*arguments)
    assert (done.returncode, done.stderr) == (0, f"written: {tmp_path}/copy.json, 2 changes listed beside it\n")
    assert f"data: {tmp_path}/copy.json" in done.stdout
    assert dirty.read_bytes() == before
    assert (tmp_path / "copy.changes.txt").read_text().splitlines()[0] == "annotation 1: removed, box-invalid"
    again = sparsedet(*arguments)
    assert again.returncode == 2
    assert "--fix: expected the name of a new file, got" in again.stderr
    assert sparsedet(*arguments[:-1], dirty).returncode == 2
    assert dirty.read_bytes() == before


def test_fix_says_where_nothing_is_left(dirty, tiny_data, tmp_path, sparsedet):
    data = json.loads(dirty.read_text())
    for image in data["images"]:
        image["id"] = str(image["id"])
    dirty.write_text(json.dumps(data))
    done = sparsedet("data", "check", dirty, "--images", tiny_data / "images", "--fix", tmp_path / "copy.json")
    message = (
        f"error: {dirty}: 'images': expected entries that a repaired copy can keep, got none: training refuses all."
    )
    assert (done.returncode, done.stderr[: len(message)]) == (2, message)
    assert not (tmp_path / "copy.json").exists()


def test_training_says_what_it_repaired(dirty, tiny_recipe, tiny_data, sparsedet, tmp_path):
    data = json.loads(dirty.read_text())
    del data["annotations"][0]
    dirty.write_text(json.dumps(data))
    settings = (f"data.train.annotations={dirty}", "training.steps=1")
    done = sparsedet("train", tiny_recipe, "-o", tmp_path / "run", *(x for value in settings for x in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert "1 x box reached outside its image and was clipped (annotation 2 (image 10))" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "stats", "{recipe}"),
        ("data", "show", "{recipe}", "-o", "{folder}/images.jpg"),
        ("data", "convert", "{recipe}", "--to", "yolo", "-o", "{folder}/yolo"),
        ("train", "{recipe}", "--dry-run"),
        ("analyze", "{recipe}"),
    ],
    ids=lambda arguments: arguments[1] if arguments[0] == "data" else arguments[0],
)
def test_every_command_says_what_it_repaired(arguments, dirty, tiny_recipe, sparsedet, tmp_path):
    data = json.loads(dirty.read_text())
    del data["annotations"][0]
    dirty.write_text(json.dumps(data))
    filled = [argument.format(recipe=tiny_recipe, folder=tmp_path) for argument in arguments]
    done = sparsedet(*filled, "--set", f"data.train.annotations={dirty}")
    assert done.returncode == 0, done.stderr
    said = f"warning: {dirty}: 1 x box reached outside its image and was clipped (annotation 2 (image 10))\n"
    assert done.stderr.count(said) == 1
    assert "warning" not in done.stdout


def test_a_picture_has_the_format_that_its_name_says(tiny_recipe, tmp_path, sparsedet):
    for name, expected in (("a.png", "PNG"), ("a.JPEG", "JPEG")):
        assert sparsedet("data", "show", tiny_recipe, "--count", 1, "-o", tmp_path / name).returncode == 0
        assert sparsedet("data", "check", tiny_recipe, "--pictures", tmp_path / f"found-{name}").returncode == 0
        for path in (tmp_path / name, tmp_path / f"found-{name}"):
            with Image.open(path) as picture:
                assert picture.format == expected
    for arguments, suffixes in ((("show", "-o"), ".jpg or .jpeg or .png"), (("stats", "--plot"), ".png")):
        done = sparsedet("data", arguments[0], tiny_recipe, arguments[1], tmp_path / "a.gif")
        message = f"error: {tmp_path}/a.gif: expected a file name that ends in {suffixes}. Choose such a name.\n"
        assert (done.returncode, done.stderr) == (2, message)


def test_stats(tiny_recipe, tiny_data, tmp_path, sparsedet):
    done = sparsedet("data", "stats", tiny_recipe, "--plot", tmp_path / "data.png")
    assert done.returncode == 0
    assert "train: 6 images (1 without annotations), 10 boxes, 0 crowds" in done.stdout
    assert "image_width_px" in done.stdout
    assert (tmp_path / "data.png").read_bytes()[:4] == b"\x89PNG"
    train = tiny_data / "annotations/train.json"
    (split,) = json.loads(sparsedet("data", "stats", train, "--images", tiny_data / "images", "--json").stdout)
    assert split["name"] == "data"
    assert split["images_per_category"] == {"bright": 5, "dark": 5}
    assert split["spread"]["image_width_px"] == {"min": 64, "p5": 64, "median": 64, "p95": 64, "max": 64}


@pytest.mark.parametrize(("arguments", "num_pictures"), [(("--split", "val"), 3), (("--transforms",), 6)])
def test_show(tiny_recipe, tmp_path, sparsedet, arguments, num_pictures):
    transforms = "data.train_transforms=[{type: resize, size: [32, 32]}]"
    path = tmp_path / "images.jpg"
    done = sparsedet("data", "show", tiny_recipe, "--count", 3, "-o", path, "--set", transforms, *arguments)
    assert (done.returncode, done.stderr) == (0, f"written: {path}\n")
    with Image.open(path) as picture:
        cells = [
            picture.crop((column * 260, 60, column * 260 + 256, 290)).convert("L").getextrema()[0] < 200
            for column in range(6)
        ]
    assert sum(cells) == num_pictures


def test_convert_there_and_back(tiny_recipe, tiny_data, tmp_path, sparsedet):
    for target in ("yolo", "voc"):
        done = sparsedet("data", "convert", tiny_recipe, "--to", target, "-o", tmp_path / target)
        assert done.returncode == 0, done.stderr
        assert "note: areas are not kept" in done.stderr
        assert sparsedet("data", "convert", tiny_recipe, "--to", target, "-o", tmp_path / target).returncode == 2
    done = sparsedet("data", "convert", tmp_path / "voc", "--to", "coco", "-o", tmp_path / "back")
    assert done.stdout.splitlines()[0] == (
        f"sparsedet data check {tmp_path}/back/train.json --images {tmp_path}/voc/JPEGImages"
    )
    (tmp_path / "voc/JPEGImages").symlink_to(tiny_data / "images")
    assert sparsedet(*done.stdout.splitlines()[0].split()[1:]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "gone.json"), "--images: expected the folder that the file names of a JSON file start from"),
        (("check", "gone.json", "--images", "gone"), "--images: expected a folder, got gone"),
        (("check", "{recipe}", "--images", "."), "--images: expected a COCO JSON file beside it"),
        (("check", "gone.json", "--images", ".", "--set", "a=1"), "--set: expected a recipe to change"),
        (("check", "{recipe}", "--fix", "x.json"), "Repair its annotation files one by one: "),
        (("check", "nothing"), "nothing: expected a file, or one of the shipped"),
        (("check", "gone.json", "--images", ".", "--fix", "x.json"), "gone.json: expected a JSON file, got 'No such"),
        (("stats", "gone.json", "--images", "."), "gone.json: expected a JSON file, got 'No such file"),
        (("show", "gone.json", "--images", ".", "-o", "x.jpg"), "gone.json: expected a JSON file, got 'No such file"),
        (("convert", "gone.yaml", "--to", "coco", "-o", "x"), "gone.yaml: expected a text file in UTF-8, got 'No such"),
        (("convert", ".", "--to", "coco", "-o", "x"), "Annotations: expected XML files, got none"),
    ],
)
def test_wrong_arguments_are_one_message_and_exit_code_2(
    arguments, message, tiny_recipe, tmp_path, monkeypatch, sparsedet
):
    monkeypatch.chdir(tmp_path)
    done = sparsedet("data", *(argument.replace("{recipe}", str(tiny_recipe)) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_file_that_is_none_is_a_fault(tmp_path, sparsedet):
    (tmp_path / "broken.json").write_text('{"images": [')
    done = sparsedet("data", "check", tmp_path / "broken.json", "--images", tmp_path)
    assert done.returncode == 1
    assert "refuse file: 1 x file cannot be read" in done.stdout
