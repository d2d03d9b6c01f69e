"""Whole runs at tiny size, from the recipe file to the files in the run folder."""

import json
import shutil
from io import StringIO

import pytest
import torch
from rich.console import Console as RichConsole
from torch.utils.data import DataLoader

from sparsedet.benchmark.cells import SuiteError
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import evaluate_checkpoint
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.sparsity_callback import SparsityCallback
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.benchmark.verify import verify_file
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError, DatasetError, TargetMatchError, UnreachableTargetError
from sparsedet.detection.bootstrap import bootstrap
from sparsedet.detection.data.splits import open_splits
from sparsedet.detection.evaluation import read_results
from sparsedet.report import render, write_report
from sparsedet.report.record import read_records

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}, targets: {exclude: [backbone.conv1]}}"
SUITE = """\
title: Tiny
experiments:
- {name: dense, family: tiny nets, label: tiny, recipe: tiny.yaml}
- name: lamp
  family: tiny nets
  label: tiny
  start: dense
  recipe:
    base: tiny.yaml
    published_ap: [0.4, 0.3]
    sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}, targets: {exclude: [backbone.conv1]}}
- name: control
  family: tiny nets
  label: tiny
  start: dense
  recipe:
    base: tiny.yaml
    dense_control: true
    sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}}
- name: two-four
  family: tiny nets
  label: tiny
  start: dense
  recipe: {base: tiny.yaml, sparsity: {pattern: {type: n_m}, schedule: {type: one_shot}}}
"""


def run(path, folder, *overrides, console=None):
    return run_suite(load_suite(path, overrides), folder, "cpu", console or Console(quiet=True))


@pytest.fixture(scope="module")
def suite_run(tiny_recipe_text, tmp_path_factory):
    """Folder of a finished run of `SUITE`, and its records."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tiny.yaml").write_text(tiny_recipe_text)
    (folder / "suite.yaml").write_text(SUITE)
    records = run(folder / "suite.yaml", folder / "run")
    return folder / "run", {(record.experiment, record.level): record for record in records}


def test_a_suite_gives_a_record_for_each_level(suite_run):
    folder, records = suite_run
    assert list(records) == [
        ("dense", None),
        ("lamp", 0),
        ("lamp", 1),
        ("control", 0),
        ("control", 1),
        ("two-four", 0),
    ]
    dense, last, pruned = records["dense", None], records["lamp", 1], records["two-four", 0]
    assert dense.initial_weights == "from scratch"
    assert last.initial_weights == "dense/dense"
    assert (last.target_sparsity, last.steps, last.published_ap, last.scheduler) == (
        0.8,
        2,
        0.3,
        "level_wise",
    )
    assert (pruned.pattern, pruned.scheduler, pruned.allocation) == ("2:4", "one_shot", None)
    assert records["control", 1].measured_sparsity == 0.0
    for (name, _), record in records.items():
        assert set(record.metrics) >= {"ap", "ap50", "ap75", "ap_small", "ar100"}
        assert (record.ap_after_pruning is not None) == (name in ("lamp", "two-four"))
    assert read_records(folder / "lamp")[0] == (records["lamp", 0], records["lamp", 1])


def test_zeros_in_the_files_are_exactly_those_asked_for(suite_run):
    folder, records = suite_run
    for level, target in enumerate((0.5, 0.8)):
        weights = load_checkpoint(folder / "lamp" / f"sparsity-{target}" / "checkpoint.pt")["model"]
        kernels = [value for value in weights.values() if value.ndim == 4]
        num_weights = sum(kernel.numel() for kernel in kernels)
        num_zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        assert num_zeros == round(target * num_weights)
        assert records["lamp", level].measured_sparsity == num_zeros / num_weights
        assert int((weights["backbone.conv1.weight"] == 0).sum()) == 0


def test_later_masks_contain_earlier_ones(suite_run):
    folder, _ = suite_run
    first, second = (load_checkpoint(folder / "lamp" / f"sparsity-{s}" / "checkpoint.pt")["model"] for s in (0.5, 0.8))
    for name, weight in first.items():
        if weight.ndim == 4:
            assert bool((second[name][weight == 0] == 0).all())


def test_pruned_weights_are_zero_without_the_last_apply(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(SparsityCallback, "before_evaluate", lambda self, model: None)
    (record, _) = run(tiny_recipe, tmp_path / "run", LEVELS)
    assert record.measured_sparsity == record.allocated_sparsity == pytest.approx(0.5, abs=1e-4)


def test_records_say_how_sure_ap_is_and_what_was_lost(suite_run):
    folder, records = suite_run
    truth = open_splits(load_recipe(folder.parent / "tiny.yaml").recipe.data, 0).val.coco.ground_truth()
    dense = bootstrap(truth, read_results(folder / "dense" / "dense" / "detections.json"))
    for (name, _), record in records.items():
        own = bootstrap(truth, read_results(folder / name / record.folder / "detections.json"))
        assert own.ap == pytest.approx(record.ap, abs=1e-12)
        assert record.ap_interval == own.interval()
        assert record.ap_drop_interval == (own.drop_from(dense) if name in ("lamp", "two-four") else None)
    assert "AP lost" in render(folder, "md")


def test_saved_detections_evaluate_to_the_recorded_numbers(suite_run):
    folder, records = suite_run
    for record in records.values():
        level = folder / record.experiment / record.folder
        assert record.metrics["ap50"] > 0
        again = evaluate_checkpoint(level / "checkpoint.pt", detections=level / "detections.json")
        assert again == record.metrics


def test_evaluation_uses_the_workers_of_the_recipe_and_they_change_nothing(suite_run, tmp_path, monkeypatch):
    used = []

    class Spy(DataLoader):
        def __init__(self, *arguments, num_workers, **options):
            used.append(num_workers)
            super().__init__(*arguments, num_workers=num_workers, **options)

    monkeypatch.setattr("sparsedet.detection.data.loader.DataLoader", Spy)
    folder, records = suite_run
    path = folder / "lamp" / records["lamp", 1].folder / "checkpoint.pt"
    found = []
    for num_workers in (0, 1, 2):
        overrides = (f"training.num_workers={num_workers}", "evaluation.batch_size=2")
        metrics = evaluate_checkpoint(path, overrides, save_detections=tmp_path / "found.json")
        found.append((metrics, (tmp_path / "found.json").read_bytes()))
    assert used == [0, 1, 2]
    assert found[0] == found[1] == found[2]


def test_a_checkpoint_evaluates_to_the_recorded_numbers(suite_run, tmp_path):
    folder, records = suite_run
    record = records["lamp", 1]
    metrics = evaluate_checkpoint(
        folder / "lamp" / record.folder / "checkpoint.pt", save_detections=tmp_path / "found.json"
    )
    assert metrics == record.metrics
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(
        (folder / "lamp" / record.folder / "detections.json").read_text()
    )


def test_verify_accepts_what_is_sparse_and_finds_what_is_not(suite_run, tmp_path):
    folder, _ = suite_run
    for name in ("dense/dense", "lamp/sparsity-0.8", "two-four/sparsity-0.5"):
        assert verify_file(folder / name / "checkpoint.pt").faults == ()
    content = load_checkpoint(folder / "lamp" / "sparsity-0.8" / "checkpoint.pt")
    mask = content["sparsifier"]["masks"]["head.cls_pred.weight"]
    mask[tuple((~mask).nonzero()[0])] = True
    torch.save(content, tmp_path / "one-less.pt")
    pruned = sum(int((~mask).sum()) for mask in content["sparsifier"]["masks"].values())
    expected = f"masks: expected exactly {pruned + 1} pruned weights, got {pruned}"
    assert verify_file(tmp_path / "one-less.pt").faults == (expected,)
    content = load_checkpoint(folder / "two-four" / "sparsity-0.5" / "checkpoint.pt")
    name, mask = next(iter(content["sparsifier"]["masks"].items()))
    content["model"][name][~mask] = -0.0
    torch.save(content, tmp_path / "minus.pt")
    assert f"{name}: expected +0.0 at" in verify_file(tmp_path / "minus.pt").faults[0]
    content["model"][name] = torch.ones_like(content["model"][name])
    torch.save(content, tmp_path / "ones.pt")
    assert any("expected at most 2 of every 4 weights" in fault for fault in verify_file(tmp_path / "ones.pt").faults)


def test_an_interrupted_suite_goes_on_to_the_same_bits(suite_run, tmp_path):
    folder, records = suite_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "lamp" / "sparsity-0.8")
    shutil.rmtree(again / "two-four")
    kept = again / "lamp" / "sparsity-0.5" / "checkpoint.pt"
    before = kept.stat().st_mtime_ns
    resumed = run(folder.parent / "suite.yaml", again)
    assert kept.stat().st_mtime_ns == before
    assert [record.metrics for record in resumed] == [record.metrics for record in records.values()]
    for level in ("lamp/sparsity-0.8", "two-four/sparsity-0.5"):
        one, other = (load_checkpoint(root / level / "checkpoint.pt") for root in (folder, again))
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    steps = [json.loads(line)["step"] for line in (again / "lamp" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]


def test_an_average_of_the_weights_is_evaluated_saved_and_resumed(tiny_recipe, tmp_path):
    settings = (
        LEVELS,
        "training.ema={decay: 0.5, ramp: linear, ramp_steps: 2}",
        "training.forward_batch_size=1",
        "data.sampler={type: aspect_ratio_groups}",
        "evaluation.after_pruning=false",
    )
    records = run(tiny_recipe, tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "tiny" / "sparsity-0.8")
    resumed = run(tiny_recipe, tmp_path / "resumed", *settings)
    assert [record.metrics for record in resumed] == [record.metrics for record in records]
    level = "tiny/sparsity-0.8/checkpoint.pt"
    one, other = (load_checkpoint(tmp_path / name / level) for name in ("whole", "resumed"))
    for content in (one, other):
        assert content["trainer"]["num_updates"] == 4
        masks = content["sparsifier"]["masks"]
        assert all((content["model"][name][~mask] == 0).all() for name, mask in masks.items())
        assert any(not torch.equal(content["model"][name], content["trainer"]["model"][name]) for name in masks)
    for key in one["model"]:
        assert torch.equal(one["model"][key], other["model"][key])
        assert torch.equal(one["trainer"]["model"][key], other["trainer"]["model"][key])
    assert verify_file(tmp_path / "whole" / level).faults == ()
    assert evaluate_checkpoint(tmp_path / "whole" / level) == records[1].metrics
    assert records[1].measured_sparsity == records[1].allocated_sparsity


def test_right_after_pruning_the_pruned_average_is_evaluated(tiny_recipe, tmp_path):
    start = tmp_path / "start" / "tiny" / "dense" / "checkpoint.pt"
    run(tiny_recipe, tmp_path / "start")
    pruning = (f"initial_checkpoint={start}", "sparsity={schedule: {type: one_shot, sparsity: 0.9}}")
    (plain,) = run(tiny_recipe, tmp_path / "plain", *pruning)
    (averaged,) = run(tiny_recipe, tmp_path / "averaged", *pruning, "training.ema={}")
    (unpruned,) = read_records(tmp_path / "start" / "tiny")[0]
    assert averaged.ap_after_pruning == plain.ap_after_pruning != unpruned.metrics["ap"]


def test_levels_and_rates_of_united_perception(tiny_recipe, tmp_path):
    run(
        tiny_recipe,
        tmp_path / "run",
        "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8], up_compat: true}}",
        "training.lr_schedule={type: multi_step, warmup: 0.0, milestones: [0.5]}",
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    # levels of two steps in name: the first goes on for a third, the second begins at its position 1
    assert [line["lr"] for line in lines] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-4])
    assert [record.steps for record in read_records(tmp_path / "run" / "tiny")[0]] == [3, 1]


def test_a_run_says_how_its_learning_rate_comes_about(tiny_recipe, tmp_path):
    stream = StringIO()
    console = Console(rich=RichConsole(file=stream, width=80, color_system=None, soft_wrap=True))
    settings = (
        "training.lr_batch_size=1",
        "training.optimizer.lr=0.000625",
        "training.lr_schedule={type: cosine, warmup_steps: 5}",
    )
    run(tiny_recipe, tmp_path / "run", *settings, console=console)
    assert "tiny: learning rate 0.00125 = 0.000625 x 2 images" in stream.getvalue()
    assert "warning: the warm-up (5 steps) is longer than a level (4 steps)" in stream.getvalue()


def test_the_report_of_a_run(suite_run):
    folder, records = suite_run
    files = write_report(folder)
    assert {file.name for file in files} >= {"report.html", "table.rst", "table.md", "table.csv"}
    text = render(folder, "rst")
    assert "Network(config)/sparsity" in text
    assert f"{records['lamp', 1].metrics['ap'] * 100:.1f}" in text
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_a_folder_of_another_recipe_is_refused(suite_run, tmp_path):
    folder, _ = suite_run
    with pytest.raises(
        SuiteError,
        match=r"dense: expected a run of this recipe, got one that differs in seed \(0 there, 1 here\)",
    ):
        run(folder.parent / "suite.yaml", folder, "seed=1")


def test_a_folder_of_a_run_on_other_data_is_refused(tiny_recipe, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    run(tiny_recipe, tmp_path / "run", f"data.root={data}", "training.steps=1")
    path = data / "annotations" / "val.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    with pytest.raises(ConfigError, match=r"expected the data this run began with \(hash \w+\), got other data"):
        run(tiny_recipe, tmp_path / "run", f"data.root={data}", "training.steps=1")


def test_a_damaged_image_stops_the_run_and_keeps_finished_levels(tiny_recipe, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    run(tiny_recipe, tmp_path / "run", f"data.root={data}", "training.steps=1")
    kept = tmp_path / "run" / "tiny" / "dense" / "checkpoint.pt"
    for image in (data / "images").glob("train_*.png"):
        image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"train_\d\.png: expected a whole image file, got a damaged one"):
        run(tiny_recipe, tmp_path / "pruned", f"data.root={data}", f"initial_checkpoint={kept}", LEVELS)
    assert load_checkpoint(kept)["step"] == 1


def test_a_start_checkpoint_of_another_model_or_other_classes_is_refused(suite_run, tiny_recipe, tmp_path):
    folder, _ = suite_run
    checkpoint = folder / "dense" / "dense" / "checkpoint.pt"
    with pytest.raises(
        CheckpointError, match=r"expected the weights of this detector, got another model's: .*has shape"
    ):
        run(tiny_recipe, tmp_path / "a", f"initial_checkpoint={checkpoint}", "detector.neck.channels=24")
    content = load_checkpoint(checkpoint)
    content["categories"] = [[3, "bright"], [7, "gloomy"]]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError,
        match=r"expected a detector of the 2 classes \['bright', 'dark'\], got one of the 2 classes",
    ):
        run(tiny_recipe, tmp_path / "b", f"initial_checkpoint={tmp_path / 'other.pt'}")


def test_an_unreachable_target_names_the_maximum_and_writes_no_record(tiny_recipe, tmp_path):
    with pytest.raises(UnreachableTargetError, match=r"expected at most 0\.\d+ .* got 0\.9"):
        run(
            tiny_recipe,
            tmp_path / "run",
            "sparsity={schedule: {type: one_shot, sparsity: 0.9}, targets: {exclude: ['backbone.layer3.*']}}",
        )
    assert not (tmp_path / "run" / "tiny" / "records.jsonl").exists()


def test_a_fault_of_the_last_experiment_is_found_before_the_first_one_trains(tiny_recipe, tmp_path):
    suite = SUITE.replace("pattern: {type: n_m}", "pattern: {type: n_m}, targets: {include: [bakbone.*]}")
    (tmp_path / "suite.yaml").write_text(suite)
    with pytest.raises(TargetMatchError, match=r"sparsity\.targets\.include\[0\]: expected a pattern that matches"):
        run(tmp_path / "suite.yaml", tmp_path / "run")
    assert not (tmp_path / "run" / "dense").exists()


def test_pruning_without_training(tiny_recipe, tmp_path):
    (record,) = run(
        tiny_recipe,
        tmp_path / "run",
        "training.steps=0",
        "sparsity={schedule: {type: one_shot, sparsity: 0.5}}",
    )
    assert record.steps == 0
    assert record.loss is None
    assert record.measured_sparsity == pytest.approx(0.5, abs=1e-4)
    assert record.metrics["ap"] == record.ap_after_pruning


def test_expected_steps_must_hold(tiny_recipe, tmp_path):
    with pytest.raises(ConfigError, match="expected_steps: expected 7 steps, got 4"):
        run(tiny_recipe, tmp_path / "run", "expected_steps=7")


def test_an_analysis_is_written_where_the_recipe_asks_for_it(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run", LEVELS, "write_analysis=true")
    rows = json.loads((tmp_path / "run" / "tiny" / "analysis" / "layers.json").read_text())
    assert rows[0]["name"] == "backbone.conv1.weight"
    assert rows[0]["chosen"] is False
    assert "backbone.conv1" in rows[0]["reason"]
    total = sum(row["num_weights"] for row in rows)
    for target in (0.5, 0.8):
        zeros = sum(row["num_weights"] * row[f"allocated_{target}"] for row in rows)
        assert round(zeros) == round(target * total)


def test_both_evaluators_give_the_same_numbers_on_detections_of_a_trained_model(suite_run, tiny_data):
    folder, records = suite_run
    record = records["dense", None]
    level = folder / "dense" / "dense"
    metrics = evaluate_checkpoint(
        level / "checkpoint.pt", ("evaluation.evaluator=pycocotools",), detections=level / "detections.json"
    )
    assert metrics == pytest.approx(record.metrics, abs=1e-12)


@pytest.mark.parametrize("method", ["best", "greedy"])
def test_two_four_in_both_directions_is_verified(method, tiny_recipe, tmp_path):
    block = f"sparsity={{scheduler: {{type: AmpereScheduler, kwargs: {{mask_calculator: m4n2_2d_{method}}}}}}}"
    run(tiny_recipe, tmp_path / "run", block, "training.steps=2")
    path = tmp_path / "run" / "tiny" / "sparsity-0.5" / "checkpoint.pt"
    assert verify_file(path).faults == ()
    content = load_checkpoint(path)
    name = next(iter(content["sparsifier"]["masks"]))
    for columns in (range(0, 4), range(4, 8)):  # four weights in a row of a block: too many along both directions
        damaged = {**content, "model": {**content["model"], name: content["model"][name].clone()}}
        damaged["model"][name][0, list(columns)] = 1.0
        torch.save(damaged, tmp_path / "damaged.pt")
        assert any(
            name in fault and "of every 4 weights" in fault for fault in verify_file(tmp_path / "damaged.pt").faults
        )


@pytest.mark.parametrize(
    ("schedule", "block", "num_changes"),
    [
        ("{type: cubic, sparsity: 0.8, initial: 0.2, last: 0.8}", "update_interval: 1", 4),  # steps 0 … 3
        ("{type: dynamic, sparsity: 0.8, drop_fraction: 0.5, stop: 1.0}", "update_interval: 2", 2),
        (
            "{type: one_shot, sparsity: 0.8}",
            "mask_update: every_k_steps, update_interval: 1, keep_pruned_values: true",
            4,
        ),
    ],
)
def test_schedules_that_change_masks_within_a_level(schedule, block, num_changes, tiny_recipe, tmp_path, monkeypatch):
    seen = []
    before_step = SparsityCallback.before_step

    def spy(self, step, total_steps):
        old = self.sparsifier.masks
        before_step(self, step, total_steps)
        new = self.sparsifier.masks
        if not old or any((mask != new[name]).any() for name, mask in old.items()):
            seen.append(step)

    monkeypatch.setattr(SparsityCallback, "before_step", spy)
    settings = f"sparsity={{schedule: {schedule}, {block}}}"
    (record,) = run(tiny_recipe, tmp_path / "run", settings)
    assert len(seen) == num_changes
    assert record.scheduler == schedule.split(",")[0].removeprefix("{type: ")
    assert record.measured_sparsity == record.allocated_sparsity == pytest.approx(0.8, abs=1e-4)
    assert record.ap_after_pruning is not None
    assert record.num_levels == 1
    checkpoint = tmp_path / "run" / "tiny" / record.folder / "checkpoint.pt"
    assert verify_file(checkpoint).faults == ()
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) == 4
    assert rates == sorted(rates, reverse=True)  # one decline, which no change of masks starts again
    assert f"{record.scheduler.replace('_', '-').capitalize()} pruning" in render(tmp_path / "run", "rst")


def test_going_on_from_a_sparse_checkpoint(suite_run, tiny_recipe, tmp_path):
    folder, _ = suite_run
    start = folder / "lamp" / "sparsity-0.8" / "checkpoint.pt"
    stream = StringIO()
    console = Console(rich=RichConsole(file=stream, width=80, color_system=None, soft_wrap=True))
    settings = (f"initial_checkpoint={start}", "training.optimizer.lr=0.01", "evaluation.after_pruning=false")
    (record,) = run(tiny_recipe, tmp_path / "dense", *settings, console=console)
    assert record.measured_sparsity < 0.1
    message = (
        "warning: 80% of the initial weights are zero, and training fills those that no mask holds; sparsity.keep_zeros"
    )
    assert message in stream.getvalue()

    kept = "sparsity={schedule: {type: level_wise, levels: [0.8, 0.85]}, keep_zeros: true, allocation: {type: uniform}}"
    records = run(tiny_recipe, tmp_path / "kept", *settings, kept, console=console)
    assert stream.getvalue().count("of the initial weights are zero") == 1
    assert [record.measured_sparsity for record in records] == pytest.approx([0.8, 0.85], abs=1e-4)
    before = load_checkpoint(start)["model"]
    for record in records:
        after = load_checkpoint(tmp_path / "kept" / "tiny" / record.folder / "checkpoint.pt")["model"]
        kernels = [name for name, value in before.items() if value.ndim == 4]
        assert all((after[name][before[name] == 0] == 0).all() for name in kernels)
        assert not any(torch.equal(after[name], before[name]) for name in kernels)
    lower = "sparsity={schedule: {type: one_shot, sparsity: 0.7}, keep_zeros: true}"
    with pytest.raises(UnreachableTargetError, match="expected between"):
        run(tiny_recipe, tmp_path / "lower", *settings, lower)
