"""Evaluations inside levels, and the best checkpoint of each."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import evaluate_checkpoint
from sparsedet.benchmark.level_evaluation import LevelEvaluation
from sparsedet.benchmark.level_runner import LevelRunner
from sparsedet.benchmark.metrics_file import TIME_KEYS
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.benchmark.verify import verify_file
from sparsedet.common.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.common.errors import StorageError
from sparsedet.detection.trainer import Trainer

LEVELS = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8]}}"
EMA = "training.ema={decay: 0.5, ramp: linear, ramp_steps: 2}"
BEST = "training.checkpoints.keep_best=true"


def run(path, folder, *overrides, console=None):
    settings = ("training.steps=8", *overrides)
    return run_suite(load_suite(path, settings), folder, "cpu", console or Console(quiet=True))


def lines(folder):
    return [json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]


def inside(folder):
    """Return step, level and AP of the evaluations inside levels."""
    return [(line["step"], line["level"], line["val_ap"]) for line in lines(folder) if "val_ap" in line]


def with_aps(monkeypatch, *aps):
    """Let the evaluations of a run have these values of AP, one after another."""
    evaluate, rest = LevelRunner._evaluate, list(aps)

    def pretended(self):
        results, metrics = evaluate(self)
        return results, metrics | {"ap": rest.pop(0)}

    monkeypatch.setattr(LevelRunner, "_evaluate", pretended)
    return rest


@pytest.mark.parametrize(
    "settings",
    [
        (LEVELS, EMA),
        (LEVELS.replace("{schedule", "{keep_pruned_values: true, schedule"), "training.num_workers=1"),
        ("sparsity={schedule: {type: dynamic, sparsity: 0.8}, update_interval: 2, allocation: {type: erk}}",),
    ],
    ids=["average", "pruned values kept", "dynamic"],
)
def test_they_change_no_bit_no_mode_and_no_random_number(assert_equal, settings, tiny_recipe, tmp_path, monkeypatch):
    expected = run(tiny_recipe, tmp_path / "without", *settings)
    evaluate, train, evaluated = LevelEvaluation.run, Trainer._step, []

    def watched(self, model):
        before = (torch.get_rng_state(), [module.training for module in model.modules()])
        results = evaluate(self, model)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert [module.training for module in model.modules()] == before[1]
        evaluated.append(model)
        return results

    def step(self, *arguments):
        assert all(module.training for module in self.model.head.modules())
        return train(self, *arguments)

    monkeypatch.setattr(LevelEvaluation, "run", watched)
    monkeypatch.setattr(Trainer, "_step", step)
    found = run(tiny_recipe, tmp_path / "with", *settings, "evaluation.every_steps=1", BEST)
    num_levels = len(found)
    assert len(evaluated) == 8 + num_levels  # the end of each level, too, and right after each pruning
    assert len(inside(tmp_path / "with")) == 8 - num_levels
    for one, other in zip(found, expected, strict=True):
        differences = {key for key, value in one.model_dump().items() if value != getattr(other, key)}
        assert differences - {"seconds", "environment", "size_bytes_sparse"} == {"best_ap", "best_step"}
        name = f"{one.folder}/checkpoint.pt"
        states = [load_checkpoint(tmp_path / folder / "tiny" / name) for folder in ("with", "without")]
        for key in ("model", "sparsifier", "trainer", "metrics", "step"):
            assert_equal(states[0][key], states[1][key])
    steps = [
        [{key: value for key, value in line.items() if key not in TIME_KEYS} for line in lines(tmp_path / folder)]
        for folder in ("with", "without")
    ]
    assert [line for line in steps[0] if "loss" in line] == steps[1]


def test_they_come_after_every_so_many_steps_of_a_level_and_are_what_its_checkpoints_evaluate_to(
    tiny_recipe, tmp_path, monkeypatch
):
    levels = "sparsity={schedule: {type: level_wise, levels: [0.5, 0.8], shares: [3, 5]}}"
    saves = "training.checkpoints={every_steps: 1, keep: 9}"
    monkeypatch.setattr("sparsedet.benchmark.progress.shutil.rmtree", lambda *_, **__: None)
    stream = StringIO()
    console = Console(rich=RichConsole(file=stream, width=80, color_system=None, soft_wrap=True))
    settings = (levels, EMA, saves, "training.optimizer.lr=0.02", "evaluation.every_steps=2")
    run(tiny_recipe, tmp_path / "run", *settings, console=console)
    folder = tmp_path / "run" / "tiny"
    places = [(0, 2), (1, 5), (1, 7)]  # levels begin at 0 and 3
    aps = [evaluate_checkpoint(folder / "progress" / f"level-{level}-step-{step}.pt")["ap"] for level, step in places]
    assert inside(tmp_path / "run") == [(step - 1, level, ap) for (level, step), ap in zip(places, aps, strict=True)]
    assert f"  tiny sparsity-0.8 step 5/8 AP {aps[1]:.3f}\n" in stream.getvalue()
    assert not list(folder.rglob("best.pt"))


@pytest.mark.parametrize(
    ("aps", "step"),
    [
        ((0.3, 0.5, 0.2, 0.4), 2),
        ((0.5, 0.2, 0.5, 0.4), 3),  # of equal ones the last
        ((0.5, 0.2, 0.3, 0.5), 4),
        ((-1.0, -1.0, -1.0, -1.0), 4),  # AP is not defined
    ],
)
def test_the_best_checkpoint_of_a_level_is_kept(assert_equal, aps, step, tiny_recipe, tmp_path, monkeypatch):
    run(tiny_recipe, tmp_path / "plain", LEVELS)
    settings = (LEVELS, "evaluation.every_steps=1", "evaluation.after_pruning=false", BEST)
    rest = with_aps(monkeypatch, *aps, 0.0, 0.0, 0.1, 0.0)
    first, second = run(tiny_recipe, tmp_path / "run", *settings)
    assert rest == []
    assert (first.best_ap, first.best_step, first.ap) == (max(aps), step, aps[-1])
    assert (second.best_ap, second.best_step, second.ap) == (0.1, 7, 0.0)  # another level, another best one
    for record in (first, second):
        level = tmp_path / "run" / "tiny" / record.folder
        best, last = (load_checkpoint(level / name) for name in ("best.pt", "checkpoint.pt"))
        assert (best["step"], best["metrics"]["ap"]) == (record.best_step, record.best_ap)
        if record.best_step == last["step"]:
            assert_equal(best, last)
        masks = best["sparsifier"]["masks"]
        assert all((best["model"][name][~mask] == 0).all() for name, mask in masks.items())
        plain = load_checkpoint(tmp_path / "plain" / "tiny" / record.folder / "checkpoint.pt")
        assert_equal(last["model"], plain["model"])  # the next level begins with the last weights, not the best


def test_the_best_checkpoint_is_one_like_any_other(tiny_recipe, tmp_path):
    settings = (LEVELS, EMA, "evaluation.every_steps=1", "training.optimizer.lr=0.02", BEST)
    for record in run(tiny_recipe, tmp_path / "run", *settings):
        path = tmp_path / "run" / "tiny" / record.folder / "best.pt"
        assert evaluate_checkpoint(path)["ap"] == record.best_ap >= record.ap
        assert verify_file(path).faults == ()


def test_the_best_checkpoint_has_the_sparsity_of_its_level(tiny_recipe, tmp_path, monkeypatch):
    sparsity = "sparsity={schedule: {type: cubic, sparsity: 0.8, last: 0.5}, update_interval: 1}"
    with_aps(monkeypatch, *[0.9, 0.9, 0.9, 0.2, 0.3, 0.1, 0.1, 0.1])  # the target is reached at step 4
    settings = (sparsity, "evaluation.every_steps=1", "evaluation.after_pruning=false", BEST)
    (record,) = run(tiny_recipe, tmp_path / "run", *settings)
    assert [line["sparsity"] < 0.79 for line in lines(tmp_path / "run") if "val_ap" in line] == [True] * 4 + [False] * 3
    assert (record.best_ap, record.best_step) == (0.3, 5)


def test_without_room_for_it_the_one_before_stays(tiny_recipe, tmp_path, monkeypatch):
    with_aps(monkeypatch, 0.2, 0.5, 0.3, 0.1)
    stream = StringIO()
    console = Console(quiet=True, rich=RichConsole(file=stream, width=80, color_system=None, soft_wrap=True))

    def nearly_full(path, content):
        if content["step"] == 2:
            raise StorageError(f"{path}: expected some room, got none. Free some.")
        save_checkpoint(path, content)

    monkeypatch.setattr("sparsedet.benchmark.level_files.save_checkpoint", nearly_full)
    settings = ("training.steps=4", "evaluation.every_steps=1", BEST)
    (record,) = run(tiny_recipe, tmp_path / "run", *settings, console=console)
    assert stream.getvalue().count("warning: no best.pt at step 2: ") == 1
    assert (record.best_ap, record.best_step) == (0.3, 3)
    assert load_checkpoint(tmp_path / "run" / "tiny" / "dense" / "best.pt")["step"] == 3
