"""What a run leaves for those who watch it, and what it does when its numbers are no longer finite."""

import json
import re
from io import StringIO
from typing import ClassVar

import pytest
import torch
from accelerate import tracking
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.metrics_file import TIME_KEYS
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import MissingExtraError, TargetMatchError
from sparsedet.detection.guard import TrainingError
from sparsedet.detection.models.retinanet import RetinaNet
from sparsedet.detection.trainer import Trainer

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}}"
BEST = "training.checkpoints.keep_best=true"
EVERY = "training.checkpoints={every_steps: 1, keep: 2}"


def run(path, folder, *overrides, console=None):
    settings = ("training.steps=8", *overrides)
    return run_suite(load_suite(path, settings), folder, "cpu", console or Console(quiet=True))


def failing(monkeypatch, step, path, folder, *overrides):
    """Run with losses that are NaN in a step, and return what the run says then."""
    losses, count = RetinaNet.losses, [0]

    def spoiled(self, outputs, targets):
        factor = float("nan") if count[0] == step else 1.0
        count[0] += 1
        return {name: term * factor for name, term in losses(self, outputs, targets).items()}

    with monkeypatch.context() as patch:
        patch.setattr(RetinaNet, "losses", spoiled)
        with pytest.raises(TrainingError) as caught:
            run(path, folder, *overrides)
    return str(caught.value)


def metrics(folder):
    return [json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]


# --- numbers that are not finite -------------------------------------------------------------------------


def test_before_there_is_a_checkpoint_the_folder_is_free_for_another_recipe(tiny_recipe, tmp_path, monkeypatch):
    said = failing(monkeypatch, 1, tiny_recipe, tmp_path / "run")
    assert "got {'cls_loss': nan, 'box_loss': nan} at step 1 with learning rate 0.0009" in said
    assert re.search(r"on the images \[1\d, 1\d\]", said)
    assert said.endswith("with a changed recipe the same command starts anew.")
    run(tiny_recipe, tmp_path / "run", "training.optimizer.lr=1e-4")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(8))


def test_the_last_good_checkpoint_is_offered_and_what_can_be_done_with_it(tiny_recipe, tmp_path, monkeypatch):
    said = failing(monkeypatch, 6, tiny_recipe, tmp_path / "run", LEVELS, EVERY)
    path = tmp_path / "run" / "tiny" / "progress" / "level-1-step-6.pt"
    change = f"initial_checkpoint={path}"
    assert "at step 6 " in said
    assert f"The last good checkpoint is {path}. The same command goes on from it" in said
    assert said.endswith(f"in another folder: --output NEW --set {change}")
    (record,) = run(tiny_recipe, tmp_path / "new", change, "training.optimizer.lr=1e-4")
    assert record.initial_weights == "tiny/progress"
    (_, record) = run(tiny_recipe, tmp_path / "run", LEVELS, EVERY)  # here the fault does not come again
    assert record.steps == 4


def test_the_checkpoint_of_a_level_is_offered_too(tiny_recipe, tmp_path, monkeypatch):
    said = failing(monkeypatch, 4, tiny_recipe, tmp_path / "run", LEVELS)
    assert f"checkpoint is {tmp_path / 'run' / 'tiny' / 'sparsity-0.5' / 'checkpoint.pt'}." in said


@pytest.mark.parametrize(("step", "offered"), [(2, "progress/level-0-step-2.pt"), (7, "progress/level-0-step-7.pt")])
def test_weights_that_are_not_finite_get_into_no_checkpoint(step, offered, tiny_recipe, tmp_path, monkeypatch):
    share, count = Trainer._share_statistics, [0]

    def spoiled(self):  # called right after the optimizer's step
        if count[0] == step:
            self.model.backbone.bn1.running_var[0] = torch.inf
        count[0] += 1
        share(self)

    monkeypatch.setattr(Trainer, "_share_statistics", spoiled)
    where = f"'backbone.bn1.running_var' and 0 more before step {step + 1}"
    with pytest.raises(TrainingError, match=rf"expected finite weights, got inf or NaN in {where}.*/{offered}\."):
        run(tiny_recipe, tmp_path / "run", EVERY)
    for path in (tmp_path / "run").rglob("*.pt"):
        assert all(value.isfinite().all() for value in load_checkpoint(path)["model"].values())


@pytest.mark.parametrize("settings", [("training.steps=1",), ("evaluation.every_steps=1", BEST)], ids=["end", "inside"])
def test_weights_are_looked_at_without_checkpoints_too(settings, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_share_statistics", lambda self: self.model.head.cls_pred.bias.data.fill_(torch.nan))
    with pytest.raises(
        TrainingError, match=r"finite weights, got inf or NaN in 'head.cls_pred.bias' .* before step 1\."
    ):
        run(tiny_recipe, tmp_path / "run", *settings)
    assert not list((tmp_path / "run").rglob("*.pt"))


# --- selectors -------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_and_is_said(tiny_recipe, tmp_path):
    stream = StringIO()
    console = Console(rich=RichConsole(file=stream, width=80, color_system=None, soft_wrap=True))
    settings = ("training.optimizer={type: adamw, lr: 0.001, weight_decay: 0.1}", EVERY)
    levels = LEVELS.replace("{schedule", "{scope: chosen, schedule")
    run(tiny_recipe, tmp_path / "run", levels, "training.freeze=['backbone.*']", *settings, console=console)
    first = load_recipe(tiny_recipe).recipe.detector.build  # weights are seeded by the run
    states = [
        load_checkpoint(tmp_path / "run" / "tiny" / f"sparsity-{target}" / "checkpoint.pt")["model"]
        for target in (0.5, 0.8)
    ]
    names = {name for name in first(2, pretrained=False).state_dict() if name.startswith("backbone.")}
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0].keys() - names)
    assert "tiny: frozen: 'backbone.*': 45 parameters, 93" in stream.getvalue()
    assert "tiny: backbone.conv1.weight stays dense: frozen (requires_grad is False)" in stream.getvalue()


def test_frozen_weights_are_pruned_where_asked(tiny_recipe, tmp_path):
    settings = (
        LEVELS.replace("{schedule", "{targets: {include_frozen: true}, schedule"),
        "training.freeze=['backbone.*']",
    )
    (first, second) = run(tiny_recipe, tmp_path / "run", *settings)
    assert first.measured_sparsity == pytest.approx(0.5, abs=1e-4)
    assert second.measured_sparsity == pytest.approx(0.8, abs=1e-4)


def test_wrong_selectors_of_any_experiment_are_found_before_the_first_step(tiny_recipe_text, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_recipe_text)
    (tmp_path / "suite.yaml").write_text(
        "title: t\nexperiments:\n"
        "  - {name: a, recipe: tiny.yaml}\n"
        "  - {name: b, recipe: {base: tiny.yaml, training: {lr_multipliers: {nick: 2}}}}\n"
    )
    with pytest.raises(TargetMatchError, match=r"lr_multipliers\.nick"):
        run(tmp_path / "suite.yaml", tmp_path / "run")
    assert not (tmp_path / "run" / "a").exists()


# --- trackers --------------------------------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch):
    class Stub(tracking.GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True
        tracker = None
        starts: ClassVar = []
        logged: ClassVar = []

        def __init__(self, run_name, logging_dir, **arguments):
            super().__init__()
            self.starts.append(arguments)

        def log(self, values, step=None):
            self.logged.append((step, values))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Stub)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    return Stub


def test_a_tracker_goes_on_at_the_step_and_changes_neither_bits_nor_identity(stub, tiny_recipe, tmp_path, monkeypatch):
    whole = run(tiny_recipe, tmp_path / "whole", LEVELS)
    trackers = "training.trackers=[tensorboard]"
    said = failing(monkeypatch, 6, tiny_recipe, tmp_path / "run", LEVELS, EVERY)
    assert "at step 6" in said
    assert stub.starts == []
    run(tiny_recipe, tmp_path / "run", LEVELS, trackers)  # added to a run that has begun
    assert stub.starts == [{"purge_step": 6}]
    assert [step for step, _ in stub.logged] == [6, 7, 7]
    line = metrics(tmp_path / "run")[6]
    values = {f"train/{key}": value for key, value in line.items() if key != "step"}
    assert stub.logged[0][1] == values
    assert stub.logged[2][1]["val/ap"] == whole[1].metrics["ap"]
    assert stub.logged[2][1]["val/measured_sparsity"] == whole[1].measured_sparsity
    assert load_recipe(tiny_recipe, (trackers,)).recipe.hash() == load_recipe(tiny_recipe).recipe.hash()
    states = [load_checkpoint(tmp_path / f / "tiny" / "sparsity-0.8" / "checkpoint.pt") for f in ("run", "whole")]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())


def test_the_steps_of_levels(stub, tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run", LEVELS, "training.trackers=[tensorboard]", "training.log_every=3")
    assert stub.starts == [{"purge_step": 0}]
    assert [(step, "val/ap" in values) for step, values in stub.logged] == [
        (2, False), (3, False), (3, True), (5, False), (7, False), (7, True),
    ]  # fmt: skip


def test_evaluations_inside_levels(stub, tiny_recipe, tmp_path):
    settings = ("training.trackers=[tensorboard]", "training.log_every=8", "evaluation.every_steps=3")
    run(tiny_recipe, tmp_path / "run", LEVELS, *settings)
    found = [line for line in metrics(tmp_path / "run") if "val_ap" in line]
    assert [(line.pop("step"), line.pop("level")) for line in found] == [(2, 0), (6, 1)]
    assert [line["sparsity"] for line in found] == [pytest.approx(0.5, abs=1e-4), pytest.approx(0.8, abs=1e-4)]
    logged = [(step, values) for step, values in stub.logged if step in (2, 6)]
    assert logged == [(step, {"val/ap": line["val_ap"]}) for step, line in zip((2, 6), found, strict=True)]


def test_a_missing_tracker_is_said_before_the_first_step(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(MissingExtraError, match="got 'tensorboard', which is not"):
        run(tiny_recipe, tmp_path / "run", "training.trackers=[tensorboard]")
    assert not (tmp_path / "run" / "tiny").exists()


# --- the folder ------------------------------------------------------------------------------------------


def test_a_line_of_metrics(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run", LEVELS, "training.max_gradient_norm=null")
    lines = metrics(tmp_path / "run")
    assert [(line["step"], line["level"]) for line in lines] == [(step, step // 4) for step in range(8)]
    assert lines[3]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert lines[4]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert all(line["gradient_norm"] > 0 for line in lines)
    assert all(line["loss"] == pytest.approx(line["cls_loss"] + line["box_loss"]) for line in lines)
    assert set(lines[0]) == {
        "step",
        "level",
        "loss",
        "cls_loss",
        "box_loss",
        "lr",
        "gradient_norm",
        "sparsity",
        *TIME_KEYS,
    }
    assert all(0 < line["data_wait_share"] < 1 for line in lines)
    assert all(line["peak_memory_bytes"] > 2**20 for line in lines)


def test_the_folder_explains_itself(tiny_recipe, tmp_path):
    (record,) = run(tiny_recipe, tmp_path / "run", "training.log_every=1")
    (again,) = run(tiny_recipe, tmp_path / "run", "training.log_every=1")
    assert again == record
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("  sparsedet 0.1.0: ") == 2
    assert log.count("tiny: initial weights: from scratch") == 1
    assert log.count("tiny: finished before, nothing to do") == 1
    folder = tmp_path / "run" / "tiny"
    found = json.loads((folder / "environment.json").read_text())
    assert (found["data_hash"], found["config_hash"]) == (record.data_hash, record.config_hash)
    assert {key: found[key] for key in record.environment} == record.environment
    assert {"started", "command", "accelerate", "platform", "num_cpus"} <= found.keys()


def test_the_log_ends_with_what_went_wrong(tiny_recipe, tmp_path, monkeypatch):
    said = failing(monkeypatch, 1, tiny_recipe, tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text().endswith(f"  ended: {said}\n")
