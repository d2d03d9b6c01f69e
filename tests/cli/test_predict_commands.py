"""`sparsedet predict` and `sparsedet eval` in detail, as a user meets them."""

import json

import pytest


@pytest.fixture(scope="module")
def checkpoint(sparsedet, tiny_recipe_text, tmp_path_factory):
    """Checkpoint of a run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "tiny.yaml").write_text(tiny_recipe_text)
    assert sparsedet("train", folder / "tiny.yaml", "--output", folder / "run").returncode == 0
    return folder / "run" / "tiny" / "dense" / "checkpoint.pt"


def test_predict_writes_json_and_pictures(checkpoint, sparsedet, tiny_data, tmp_path):
    image = tiny_data / "images" / "val_0.png"
    done = sparsedet("predict", checkpoint, image, tiny_data / "images", "--output", tmp_path / "out", "--score", 0)
    assert done.returncode == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert done.stdout == f"{len(content['annotations'])} objects in 11 images, 0 skipped\n"
    assert content["images"][0]["file_name"] == str(image)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 11
    assert "predict 11/11 images, " in done.stderr
    assert done.stderr.endswith(f"written: {tmp_path / 'out'}\n")


def test_predict_finds_what_evaluation_finds(checkpoint, sparsedet, tiny_data, tmp_path):
    sparsedet("eval", checkpoint, "--save-detections", tmp_path / "found.json")
    expected = json.loads((tmp_path / "found.json").read_text())
    images = [tiny_data / "images" / f"val_{number}.png" for number in range(5)]
    done = sparsedet("predict", checkpoint, *images, "--output", tmp_path / "out", "--score", 0, "--json")
    content = json.loads(done.stdout)
    assert len(content["annotations"]) == len(expected) > 0
    for one, other in zip(content["annotations"], expected, strict=True):
        assert one["image_id"] == other["image_id"] - 9
        assert (one["category_id"], one["score"]) == (other["category_id"], pytest.approx(other["score"], abs=1e-6))
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_predict_names_what_it_skips_and_exits_with_1(checkpoint, sparsedet, tiny_data, tmp_path):
    bad = tmp_path / "b\x1bad.png"
    bad.write_bytes(b"x")
    done = sparsedet("predict", checkpoint, bad, tiny_data / "images" / "val_0.png", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "warning: skipped: " in done.stderr
    assert "in 1 images, 1 skipped\nskipped: " in done.stdout
    assert "\x1b" not in done.stdout
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{folder}",), 2, "error: images: expected image files, or folders with some, got "),
        (("{folder}/x.png", "--score", "1.5"), 2, "less than or equal to 1"),
        (("{folder}/x.png", "--device", "tpu"), 2, "device: expected an available device, got 'tpu'"),
        ((), 2, "Missing argument"),
    ],
)
def test_predict_refuses(checkpoint, sparsedet, tmp_path, arguments, code, message):
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    done = sparsedet("predict", checkpoint, *filled, "--output", tmp_path / "out")
    assert done.returncode == code
    assert message in done.stderr


def test_predict_interrupted(checkpoint, sparsedet, tiny_data, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsedet.benchmark.prediction._drawn", interrupted)
    done = sparsedet("predict", checkpoint, tiny_data / "images", "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith(f"interrupted: the pictures so far are in {tmp_path / 'out'}\n")


def test_eval_shows_classes_limits_and_the_interval(checkpoint, sparsedet):
    record = json.loads((checkpoint.parents[1] / "records.jsonl").read_text())
    limits = ("--max-detections", 2, "--max-detections", 300)
    content = json.loads(sparsedet("eval", checkpoint, *limits, "--json").stdout)
    assert {key: content[key] for key in record["metrics"]} == record["metrics"]
    assert content["ap_interval"] == record["ap_interval"]
    assert [row["name"] for row in content["per_class"]] == ["bright", "dark"]
    assert sum(row["ap"] for row in content["per_class"]) / 2 == pytest.approx(content["ap"])
    assert content["at_max_detections"]["300"]["ap"] == content["ap"]  # the detector itself keeps 100
    done = sparsedet("eval", checkpoint, *limits, "--per-class")
    lines = done.stdout.splitlines()
    two, many = content["at_max_detections"]["2"], content["at_max_detections"]["300"]
    low, high = content["ap_interval"]
    assert lines[0] == (
        f"ap         {content['ap']:.4f}   at 2: {two['ap']:.4f}   at 300: {many['ap']:.4f}"
        f"   95 % interval {low:.4f} to {high:.4f}"
    )
    assert lines[6] == f"ar1        {content['ar1']:.4f}"
    assert lines[8] == f"ar100      {content['ar100']:.4f}   at 2: {two['ar']:.4f}   at 300: {many['ar']:.4f}"
    assert lines[12].split()[:3] == ["class", "objects", "ap"]
    assert lines[13].split()[:3] == ["bright", "4", f"{content['per_class'][0]['ap']:.4f}"]
    assert len(lines) == 15
    assert len(sparsedet("eval", checkpoint).stdout.splitlines()) == 12
