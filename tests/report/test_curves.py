"""The plot of a training."""

import json

from sparsedet.report.curves import training_curves
from sparsedet.report.drawings import draw_files
from sparsedet.report.html import to_html
from sparsedet.report.run import load_run

ROWS = [
    {"step": step, "level": step // 560, "loss": 2.0, "cls_loss": 1.5, "box_loss": 0.5, "lr": 0.1 / (1 + step % 560)}
    for step in range(20, 1120, 280)
]


def write(run_dir, *lines):
    (run_dir / "lamp" / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    run = load_run(run_dir)
    return run, next(experiment for experiment in run.experiments if experiment.name == "lamp")


def points(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_what_is_drawn(run_dir):
    inside = [{"step": 139, "level": 0, "val_ap": 0.25}, {"step": 699, "level": 1, "val_ap": -1.0}]  # no AP is defined
    _, experiment = write(run_dir, *map(json.dumps, ROWS + inside), '{"step": 1120, "lo')
    loss, lr, ap = training_curves(experiment).axes
    steps = [20, 300, 580, 860]
    assert points(loss)["loss"] == [(step, 2.0) for step in steps]
    assert points(loss)["cls_loss"] == [(step, 1.5) for step in steps]
    assert points(loss)["box_loss"] == [(step, 0.5) for step in steps]
    assert list(lr.lines[0].get_ydata()) == [row["lr"] for row in ROWS]
    ends = [(560 * (index + 1), 100 * record.ap) for index, record in enumerate(experiment.records)]
    starts = [(560 * index, 100 * record.ap_after_pruning) for index, record in enumerate(experiment.records)]
    assert points(ap)["at the end of the level"] == ends
    assert points(ap)["right after pruning"] == starts
    assert points(ap)["inside the level"] == [(140, 25.0)]
    for axes in (loss, lr, ap):
        assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == ":"] == [[560, 560]]


def test_without_steps_nothing_is_drawn(run_dir):
    run, experiment = write(run_dir)
    assert training_curves(experiment) is None
    assert not any(path.name == "training.png" for path in draw_files(run))


def test_a_single_step_is_seen(run_dir):
    _, experiment = write(run_dir, json.dumps(ROWS[0]))
    loss, lr, _ = training_curves(experiment).axes
    assert [line.get_marker() for line in [*loss.lines, *lr.lines]] == ["."] * 4
    _, experiment = write(run_dir, *map(json.dumps, ROWS[:2]))
    loss, lr, _ = training_curves(experiment).axes
    assert {line.get_marker() for line in [*loss.lines, *lr.lines] if line.get_linestyle() != ":"} == {""}


def test_metrics_of_older_runs_have_no_levels(run_dir):
    _, experiment = write(run_dir, '{"step": 0, "loss": 1.0, "lr": 0.1}', '{"step": 1, "loss": 1.0, "lr": 0.1}')
    assert len(training_curves(experiment).axes[0].lines) == 1


def test_it_is_in_the_folder_and_in_the_report(run_dir):
    run, experiment = write(run_dir, *map(json.dumps, ROWS))
    assert draw_files(run)[experiment.folder / "training.png"].startswith(b"\x89PNG")
    assert 'alt="loss, learning rate and AP over the steps of lamp"' in to_html(run)
