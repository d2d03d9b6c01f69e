"""What README, docs and recipe headers tell people to type is run here, at tiny size."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from sparsedet.benchmark.suite import load_suite
from sparsedet.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY_DETECTOR = (
    "{type: retinanet, backbone: {type: resnet18, width: 16, levels: [3, 4]}, neck: {channels: 16, num_levels: 2}}"
)
TINY = ("training.steps=28", "training.batch_size=2", "evaluation.after_pruning=false", f"detector={TINY_DETECTOR}")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [line.split("  #")[0].strip() for line in lines if line.startswith(("sparsedet ", "make demo"))]
    return [line.replace("make demo", "sparsedet demo --output runs/demo") for line in found]


def run(command, extra=()):
    arguments = shlex.split(command)
    with mock.patch.object(sys, "argv", [*arguments, *(part for value in extra for part in ("--set", value))]):
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 0, command


def dry(command):
    """The same command without COCO or a GPU: only its plan."""
    return command if "--dry-run" in command else f"{command} --dry-run"


@pytest.fixture
def workplace(tiny_data, tiny_recipe_text, tmp_path, monkeypatch):
    """Current folder in which the commands find the files they speak of, with the tiny data set behind every path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(tiny_recipe_text)
    return tmp_path


def small_demo_data(folder):
    """Make the demo's data set with a validation split of five images."""
    from sparsedet.detection.data.digit_scenes import make_digit_scenes

    path = make_digit_scenes(folder) / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:5]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    path.with_name("tiny.json").write_text(json.dumps(content))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_recipes_or_suites(page, tiny_recipe_text, tmp_path):
    (tmp_path / "dense.yaml").write_text(tiny_recipe_text)
    for block in blocks(page, "yaml"):
        (tmp_path / "block.yaml").write_text(block)
        load_suite(tmp_path / "block.yaml")


def test_examples_run():
    for example in (ROOT / "examples").glob("*.py"):
        done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(
            r"^all +0\.9000$|, 0\.[45]\d+ of the multiplications are left$", done.stdout, flags=re.MULTILINE
        )


@pytest.mark.slow
def test_commands_of_the_readme_run(workplace, tiny_data, capsys):
    small_demo_data(Path("runs/demo/data"))
    seen = set()
    for page in PAGES:
        for command in commands(page):
            if command in seen:
                continue
            seen.add(command)
            name = command.split()[1]
            text = command.replace("PATH/TO/DATA", str(tiny_data)).replace("PATH/TO/IMAGES", str(tiny_data / "images"))
            if "PATH/TO/COCO" in text or "--dry-run" in text:
                run(dry(text))
            elif name == "demo":
                run(text, (*TINY, "data.val.annotations=annotations/tiny.json"))
            elif name in ("bench", "train"):
                run(text, TINY)
            else:
                run(text)
    assert {command.split()[1] for command in seen} >= {"demo", "bench", "train", "eval", "report", "analyze", "verify"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("suites/*.yaml")), ids=lambda path: path.stem)
def test_commands_of_recipe_headers_run(recipe, workplace, tiny_data, capsys):
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    found = [line.removeprefix("#   ") for line in header if line.startswith("#   sparsedet ")]
    assert found, f"{recipe.name}: its header shows no command"
    needs_gpu = any("Not run by us" in line for line in header)
    for command in found:
        if command.startswith("sparsedet demo"):
            continue  # run above
        if needs_gpu:
            run(dry(command.replace("PATH/TO/DATA", str(tiny_data))))
            continue
        run(command.split("  #")[0].replace("PATH/TO/DATA", str(tiny_data)), TINY)


def test_makefile_targets_of_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)) <= targets
