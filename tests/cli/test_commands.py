"""The command line as a user meets it: its output and its exit code."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import pytest

from sparsedet.benchmark.console import Console

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}}"


@pytest.fixture(scope="module")
def run_folder(sparsedet, tiny_recipe_text, tmp_path_factory):
    """Folder of a run of the tiny recipe with two levels, made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(tiny_recipe_text)
    done = sparsedet("train", folder / "tiny.yaml", "--set", LEVELS, "--seed", 3, "--output", folder / "run", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [(record["target_sparsity"], record["seed"]) for record in records] == [(0.5, 3), (0.8, 3)]
    return folder / "run"


@pytest.mark.parametrize(("process", "waits", "sender"), [("0", [], ""), ("3", [5], "process 3: ")])
def test_of_several_processes_with_an_error_the_first_speaks_first(sparsedet, monkeypatch, process, waits, sender):
    waited = []
    monkeypatch.setattr("sparsedet.cli.main.time.sleep", waited.append)
    for key, value in (("WORLD_SIZE", "4"), ("RANK", process), ("TORCH_CPP_LOG_LEVEL", "INFO")):
        monkeypatch.setenv(key, value)
    done = sparsedet("train", "no such recipe")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{sender}error: no such recipe: expected ")
    assert waited == waits


def test_help_needs_no_torch_and_answers_at_once():
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "sparsedet.cli", "--help"], capture_output=True, text=True, check=True)
    assert "analyze" in done.stdout
    assert time.perf_counter() - started < 5
    code = (
        "import sys, sparsedet.cli.main; print(sorted({'torch', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_report_formats(run_folder, sparsedet):
    rst = sparsedet("report", run_folder)
    assert "Network(config)/sparsity" in rst.stdout
    assert sparsedet("report", run_folder, "--format", "csv").stdout.count("\n") == 3
    assert "| experiment" in sparsedet("report", run_folder, "--format", "md").stdout
    html = sparsedet("report", run_folder, "--format", "html", "--output", run_folder / "x.html")
    assert html.stdout.strip() == str(run_folder / "x.html")
    assert (run_folder / "x.html").read_text().startswith("<!doctype html>")


def test_eval_prints_what_was_recorded(run_folder, sparsedet):
    done = sparsedet("eval", run_folder / "tiny" / "sparsity-0.8" / "checkpoint.pt", "--json")
    records = [json.loads(line) for line in (run_folder / "tiny" / "records.jsonl").read_text().splitlines()]
    printed = json.loads(done.stdout)
    assert {name: printed[name] for name in records[1]["metrics"]} == records[1]["metrics"]


def test_eval_reads_the_validation_split_alone_and_says_what_it_repaired(run_folder, tiny_data, tmp_path, sparsedet):
    checkpoint = run_folder / "tiny" / "sparsity-0.8" / "checkpoint.pt"
    data = json.loads((tiny_data / "annotations/val.json").read_text())
    for annotation in data["annotations"]:
        del annotation["area"]
    (tmp_path / "val.json").write_text(json.dumps(data))
    settings = ("--set", "data.train.annotations=gone.json", "--set", f"data.val.annotations={tmp_path}/val.json")
    done = sparsedet("eval", checkpoint, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"warning: {tmp_path}/val.json: 8 x 'area' was missing or no positive number")
    data["categories"][0]["id"] += 1
    for annotation in data["annotations"]:
        annotation["category_id"] += annotation["category_id"] == data["categories"][0]["id"] - 1
    (tmp_path / "val.json").write_text(json.dumps(data))
    done = sparsedet("eval", checkpoint, *settings)
    assert done.returncode == 2
    given = data["categories"][0]
    assert f"{given['id'] - 1} = '{given['name']}'" in done.stderr
    assert f"{given['id']} = '{given['name']}' in {tmp_path}/val.json" in done.stderr


def test_verify_exit_codes(run_folder, tmp_path, sparsedet):
    import torch

    checkpoint = run_folder / "tiny" / "sparsity-0.8" / "checkpoint.pt"
    done = sparsedet("verify", checkpoint)
    assert done.returncode == 0
    assert "asked 80.00%; zeros counted: 79.9999%" in done.stdout
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["backbone.conv1.weight"].fill_(1.0)
    torch.save(content, tmp_path / "bad.pt")
    done = sparsedet("verify", tmp_path / "bad.pt", "--json")
    assert done.returncode == 1
    assert "backbone.conv1.weight: expected +0.0 at" in json.loads(done.stdout)["faults"][0]


def test_analyze_a_recipe_and_a_checkpoint(run_folder, sparsedet):
    recipe = run_folder.parent / "tiny.yaml"
    rows = json.loads(sparsedet("analyze", recipe, "--set", LEVELS, "--json").stdout)
    assert {"name", "shape", "num_macs", "stride_group", "chosen", "reason", "allocated_0.5"} <= set(rows[0])
    rows = json.loads(sparsedet("analyze", run_folder / "tiny" / "sparsity-0.5" / "checkpoint.pt", "--json").stdout)
    num_weights = sum(row["num_weights"] for row in rows)
    assert sum(row["num_weights"] * row["measured_sparsity"] for row in rows) / num_weights == pytest.approx(
        0.5, abs=1e-4
    )
    assert "allocated_0.5" not in rows[0]
    assert "allocated_0.8" in rows[0]
    rows = json.loads(sparsedet("analyze", recipe, "--json").stdout)
    assert {row["sparsity"] for row in rows} == {0.0}  # it prunes nothing: what its layers are


def test_config_show_loads_back_equal(run_folder, tmp_path, sparsedet):
    shown = sparsedet("config", "show", run_folder.parent / "tiny.yaml", "--set", LEVELS).stdout
    (tmp_path / "again.yaml").write_text(shown)
    assert sparsedet("config", "show", tmp_path / "again.yaml").stdout == shown


def test_config_translate_prints_the_native_form_and_every_key(tiny_recipe, tmp_path, sparsedet):
    block = "sparsity:\n  scheduler:\n    type: AmpereScheduler\n    kwargs: {mask_calculator: m4n2_1d, verbosity: 0}\n"
    tiny_recipe.write_text(tiny_recipe.read_text() + block)
    done = sparsedet("config", "translate", tiny_recipe)
    assert "eligibility: asp" in done.stdout
    assert "sparsity.scheduler.kwargs.verbosity: no effect" in done.stderr


def pruning(text):
    return "train", "{recipe}", "--set", f"sparsity={{{text}}}"


ONE_SHOT = "schedule: {type: one_shot, sparsity: 0.3}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing.yaml"), "error: nothing.yaml: expected a file, or one of the shipped"),
        (("train", "demoo"), "Check the path."),
        (("train", "{recipe}", "--set", "training.step=4"), "training.step: expected one of"),
        (("train", "{recipe}", "--set", "training.step=4"), "got the unknown key 'step'. Did you mean 'steps'?"),
        (("train", "{recipe}", "--set", "training.steps=x"), "training.steps: expected a valid integer, got 'x'."),
        (("train", "{recipe}", "--set", "data.root=/none"), "/none/annotations/train.json: expected a JSON file, got"),
        (("train", "{recipe}", "--device", "tpu"), "device: expected an available device, got 'tpu'"),
        (("train", "{recipe}", "--set", "training.precision=fp16"), "expected 'fp32' or 'bf16' on the CPU, got 'fp16'"),
        (
            ("train", "{recipe}", "--output", "{recipe}/x"),
            "expected a folder that can be written, got 'Not a directory'",
        ),
        (pruning("schedule: {type: one_shot, sparsity: 1.0}"), "schedule.sparsity: expected less than 1, got 1.0."),
        (
            pruning("schedule: {type: level_wise, levels: [0.5, 0.4]}"),
            "sparsity.schedule.levels: expected levels that rise",
        ),
        (
            pruning(f"{ONE_SHOT}, pattern: {{type: n_m}}"),
            "expected the sparsity 0.5 that the pattern 2:4 gives, got [0.3]",
        ),
        (pruning(f"{ONE_SHOT}, targets: {{include: [head.cls]}}"), "Did you mean 'head.cls_pred'?"),
        (
            pruning("schedule: {type: one_shot}, pattern: {type: n_m}, targets: {include: [backbone.conv1]}"),
            "needs in_channels/groups % 4 == 0, got 3",
        ),
        (("eval", "{recipe}"), "expected a whole checkpoint, got an unreadable file"),
        (("eval", "gone.pt"), "gone.pt: expected a checkpoint file, got nothing. Check the path."),
        (("report", "."), "expected a run folder with suite.json"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, message, tiny_recipe, tmp_path, monkeypatch, sparsedet):
    monkeypatch.chdir(tmp_path)
    done = sparsedet(*(argument.replace("{recipe}", str(tiny_recipe)) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_sensitivity_says_once_what_it_repaired_in_both_splits(run_folder, tiny_data, tmp_path, sparsedet):
    checkpoint = run_folder / "tiny" / "sparsity-0.5" / "checkpoint.pt"
    settings = ["sparsity.criterion={type: activation}", "sparsity.targets={include: [backbone.conv1]}"]
    for split in ("train", "val"):
        data = json.loads((tiny_data / f"annotations/{split}.json").read_text())
        del data["annotations"][0]["area"]
        (tmp_path / f"{split}.json").write_text(json.dumps(data))
        settings.append(f"data.{split}.annotations={tmp_path}/{split}.json")
    changes = [part for setting in settings for part in ("--set", setting)]
    done = sparsedet(
        "sensitivity",
        checkpoint,
        "--output",
        tmp_path,
        "--images",
        1,
        "--sparsities",
        "0.9",
        *changes,
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        assert done.stderr.count(f"warning: {tmp_path}/{split}.json: 1 x 'area' was missing") == 1


def test_sensitivity_is_measured_on_a_subset_and_feeds_an_allocation(run_folder, sparsedet, tmp_path):
    import torch

    from sparsedet.benchmark.evaluation import open_evaluation

    checkpoint = run_folder / "tiny" / "sparsity-0.5" / "checkpoint.pt"
    arguments = ("sensitivity", checkpoint, "--output", tmp_path, "--images", 2)
    keep = "sparsity.targets={include: [backbone.conv1, neck.lateral.4.conv]}"
    done = sparsedet(*arguments, "--sparsities", "0.9", "--set", keep, "--json")
    assert done.returncode == 0, done.stderr
    curves = json.loads(done.stdout)["curves"]
    assert [len(points) for points in curves.values()] == [1, 1]
    assert (tmp_path / "sensitivity-2-images.png").read_bytes()[:4] == b"\x89PNG"

    evaluation = open_evaluation(checkpoint, device_name="cpu", num_images=2)
    weight = dict(evaluation.saved.model.named_parameters())["backbone.conv1.weight"].detach()
    order = weight.abs().flatten().argsort(stable=True)
    weight.view(-1)[order[: round(0.9 * weight.numel())]] = 0
    assert len(evaluation.images) == 2
    assert torch.tensor(curves["backbone.conv1.weight"][0]["value"]) == torch.tensor(
        evaluation.metrics(evaluation.detect())["ap"]
    )

    more = sparsedet(*arguments, "--sparsities", "0.9,0.99", "--set", keep)
    assert more.stderr.count("measurement") == 2  # those of 0.9 and of the detector as it is are in the file
    assert "ap 0.99" in more.stdout
    wrong = sparsedet(*arguments, "--sparsities", "half")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: --sparsities: expected numbers such as 0.5,0.8,0.9, got 'half'. Correct it.\n",
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_where_it_goes_on(number, code, sparsedet, tiny_recipe, tmp_path, monkeypatch):
    class Stopping(Console):
        @contextmanager
        def training(self, label, log_every, suite_seconds):
            yield lambda step, sparsity: signal.raise_signal(number)

    monkeypatch.setattr("sparsedet.benchmark.console.Console", partial(Stopping, quiet=True))
    done = sparsedet("train", tiny_recipe, "--output", tmp_path / "run")
    assert done.returncode == code
    assert done.stderr == f"stopped by {number.name} before step 1 of tiny: the same command goes on from here\n"
    assert not (tmp_path / "run" / "report.html").exists()


def test_what_trackers_print_is_no_result():
    code = (
        "import atexit; from sparsedet.cli.run_commands import _talk_on_stderr\n"
        "with _talk_on_stderr(): print('begun'); atexit.register(print, 'uploaded')\n"
        "print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "begun\nuploaded\n")
