"""Hours of a plan: what is counted, by hand; that steps are timed, on a clock of the test's own."""

import pytest

from sparsedet.benchmark import timing
from sparsedet.benchmark.plan import plan
from sparsedet.benchmark.suite import load_suite
from sparsedet.benchmark.timing import Timing, add_hours, measure
from sparsedet.common.errors import DatasetError

SUITE = """\
title: Tiny
experiments:
- {name: dense, recipe: tiny.yaml}
- {name: again, recipe: {base: tiny.yaml, seed: 4, training: {steps: 8}}}
- name: lamp
  start: dense
  recipe: {base: tiny.yaml, sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}}}
- name: control
  recipe: {base: tiny.yaml, dense_control: true, sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}}}
- name: reestimated
  recipe: {base: tiny.yaml, reestimate_batch_norm: 2, sparsity: {schedule: {type: one_shot, sparsity: 0.5}}}
"""


@pytest.fixture
def suite(tiny_recipe, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def test_hours_are_steps_and_evaluations(suite, monkeypatch):
    measured = []

    def fake(recipe, device):
        measured.append(recipe)
        return Timing(36.0, 360.0 * len(measured))  # a hundredth of an hour for a step, a tenth or more to evaluate

    monkeypatch.setattr(timing, "measure", fake)
    loaded = load_suite(suite)
    rows = plan(loaded)
    add_hours(rows, loaded, "cpu")
    assert [(row["experiment"], row["hours"]) for row in rows] == [
        ("dense", pytest.approx(0.04 + 0.1)),
        ("again", pytest.approx(0.08 + 0.1)),  # of the same kind as the first
        ("lamp", pytest.approx(0.02 + 2 * 0.2)),  # evaluated after pruning too
        ("lamp", pytest.approx(0.02 + 2 * 0.2)),
        ("control", pytest.approx(0.02 + 0.3)),
        ("control", pytest.approx(0.02 + 0.3)),
        ("reestimated", pytest.approx(0.04 + 3 * 0.4)),
    ]
    assert {row["step s"] for row in rows} == {36.0}


@pytest.mark.parametrize(("every", "number"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_evaluations_inside_levels_take_their_time(every, number, tiny_recipe, monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda recipe, device: Timing(0.0, 3600.0))
    loaded = load_suite(tiny_recipe, (f"evaluation.every_steps={every}",))  # of four steps
    rows = plan(loaded)
    add_hours(rows, loaded, "cpu")
    assert [row["hours"] for row in rows] == [number]


@pytest.mark.parametrize("name", ["dense", "lamp", "reestimated"])
def test_ten_steps_and_some_images_are_timed(suite, name, monkeypatch, tmp_path):
    seen = {"steps": 0, "images": 0}
    step, detect = timing.Trainer._step, timing.detect

    def slow_step(self, index, *rest):
        seen["steps"] += 1
        seen["time"] = seen.get("time", 0) + (2 if index >= 3 else 50)  # the first three do not count
        return step(self, index, *rest)

    def slow_detect(model, batches, *rest):
        (batch,) = batches
        seen["time"] += len(batch.image_ids) * (7 if seen["images"] else 100)  # nor does the first batch
        seen["images"] += len(batch.image_ids)
        return detect(model, batches, *rest)

    monkeypatch.setattr(timing.Trainer, "_step", slow_step)
    monkeypatch.setattr(timing, "detect", slow_detect)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seen.get("time", 0))
    before = sorted(tmp_path.iterdir())
    loaded = load_suite(suite, ("evaluation.batch_size=1",)).cells()[name]
    assert measure(loaded.recipe, timing.choose_device("cpu")) == Timing(2.0, 7.0 * 5)  # of five images
    assert seen["steps"] == 13
    assert seen["images"] == 4
    assert sorted(tmp_path.iterdir()) == before


def test_a_single_batch_is_timed_though_it_is_the_first(tiny_recipe):
    recipe = load_suite(tiny_recipe, ("evaluation.batch_size=8",)).recipes[0].recipe
    assert measure(recipe, timing.choose_device("cpu")).evaluation_seconds > 0


def test_without_data_nothing_is_timed(tiny_recipe):
    with pytest.raises(DatasetError, match="/nowhere"):
        add_hours([], load_suite(tiny_recipe, ("data.root=/nowhere",)), "cpu")
