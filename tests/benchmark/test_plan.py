"""The plan of a suite, against numbers worked out by hand."""

import shutil
from types import SimpleNamespace

import pytest

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.plan import plan, summary
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.errors import ConfigError, SparseDetError
from sparsedet.common.shipped import find_config

WEIGHTS = ("checkpoint.pt", "best.pt", "weights.safetensors")
BEST = ("evaluation.every_steps=1", "training.checkpoints.keep_best=true")
PUBLISHED = {  # COCO val2017 box AP in percent, by row: dense, 30 to 90 %, 2:4
    "retinanet-r50": (37.0, (37.5, 37.7, 37.6, 37.2, 36.7, 33.7, 32.6), 36.8),
    "retinanet-improve-r18": (40.7, (40.7, 40.7, 40.5, 40.3, 39.5, 37.1, 29.5), 40.3),
    "retinanet-improve-cos-iou-r18": (41.3, (41.3, 41.2, 40.9, 40.9, 39.8, 36.7, 27.6), 40.8),
    "faster-rcnn-r50": (43.5, (None,) * 7, 41.7),
}


@pytest.fixture(scope="module")
def published():
    """Rows of the published suite, planned without its data."""
    return plan(load_suite(find_config("published_coco.yaml"), ("data.root=/nowhere",)))


def rows_of(rows, experiment):
    return [row for row in rows if row["experiment"] == experiment]


def test_every_published_cell_is_planned(published):
    for name, (dense, levels, two_four) in PUBLISHED.items():
        assert rows_of(published, f"{name}-dense")[0]["published AP"] == pytest.approx(dense / 100)
        assert rows_of(published, f"{name}-two-four")[0]["published AP"] == pytest.approx(two_four / 100)
        planned = rows_of(published, f"{name}-levels")
        assert [row["level"] for row in planned] == [f"{share}% unstructured" for share in range(30, 100, 10)]
        expected = [None if value is None else pytest.approx(value / 100) for value in levels]
        assert [row["published AP"] for row in planned] == expected
        for kind in ("levels", "two-four"):
            assert {row["starts from"] for row in rows_of(published, f"{name}-{kind}")} == {f"{name}-dense"}


def test_steps_batches_and_rates_of_the_published_runs(published):
    # 117266 images: ceil(117266 / 16) = 7330 for each device; 3665 batches of 2, 917 of 8
    (dense,) = rows_of(published, "retinanet-r50-dense")
    assert (dense["steps"], dense["epochs"], dense["batch"]) == (12 * 3665, 12, "32 = 16 x 2")
    assert (dense["first lr"], dense["peak lr"]) == (pytest.approx(2e-5), pytest.approx(0.02))  # 6.25e-4 x 32
    assert dense["last lr"] == pytest.approx(2e-4)
    levels = rows_of(published, "retinanet-improve-r18-levels")
    assert [row["steps"] for row in levels] == [12 * 917] * 7
    assert {row["batch"] for row in levels} == {"128 = 16 x 8"}
    for level in levels:  # every level starts again
        assert level["first lr"] == pytest.approx(8e-6)
        assert level["peak lr"] == pytest.approx(8e-3)
        assert level["last lr"] == pytest.approx(8e-5)
    (two_four,) = rows_of(published, "faster-rcnn-r50-two-four")
    assert two_four["steps"] == 20 * 3665
    assert two_four["first lr"] == pytest.approx(6.25e-5)  # not scaled by the batch: up_semantics §9
    assert two_four["peak lr"] == pytest.approx(2e-3)


def test_a_plan_counts_the_data_that_are_there(tiny_recipe):
    (row,) = plan(load_suite(tiny_recipe, ("training.steps=null", "training.epochs=5")))
    assert (row["steps"], row["epochs"], row["batch"]) == (15, 5.0, "2")  # 6 images in batches of 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.freeze=[nix]", "expected a pattern that matches a parameter, got 'nix'"),
        ("sparsity={schedule: {type: one_shot, sparsity: 0.995}}", "got 0.995. Lower it"),
        ("initial_checkpoint=/gone.pt", "initial_checkpoint: expected a file, got /gone.pt, which is none. Check"),
        ("detector.backbone.weights=/gone.pth", "detector.backbone.weights: expected a file, got /gone.pth, which is"),
    ],
)
def test_plan_and_suite_say_at_once_what_a_run_would_stop_at(override, message, tiny_recipe, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        f"title: T\nexperiments:\n- {{name: first, recipe: {tiny_recipe}}}\n- {{name: last, recipe: {tiny_recipe}}}\n"
    )
    suite = load_suite(tmp_path / "suite.yaml", (f"last:{override}",))
    for function in (plan, lambda suite: run_suite(suite, tmp_path / "run", "cpu", Console(quiet=True))):
        with pytest.raises(SparseDetError) as error:
            function(suite)
        assert message in str(error.value)
    assert not (tmp_path / "run" / "first").exists()


def test_a_level_is_named_by_its_exact_share(tiny_recipe):
    (row,) = plan(load_suite(tiny_recipe, ("sparsity={schedule: {type: one_shot, sparsity: 0.875}}",)))
    assert row["level"] == "87.5% unstructured"


def test_no_data_and_no_number_of_images(tiny_recipe):
    with pytest.raises(
        ConfigError, match=r"data.root: expected the annotation file /nowhere/annotations/train.json or"
    ):
        plan(load_suite(tiny_recipe, ("data.root=/nowhere",)))


def test_the_disk_of_a_plan_holds_what_a_run_leaves(tiny_recipe, tmp_path):
    pruned = "sparsity={schedule: {type: one_shot, sparsity: 0.5}}"
    for overrides in ((), ("training.ema={decay: 0.5}",), (pruned,), BEST):
        suite = load_suite(tiny_recipe, ("training.steps=1", *overrides))
        (row,) = plan(suite)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run_suite(suite, folder, "cpu", Console(quiet=True))
        sizes = [path.stat().st_size / 2**20 for path in folder.rglob("*") if path.name in WEIGHTS]
        assert len(sizes) == (3 if overrides is BEST else 2)
        assert sum(sizes) < row["disk MiB"] < sum(sizes) + 1.5  # a MiB is added for what is not weights


def test_the_disk_of_a_plan_without_data_is_that_of_80_classes(published):
    # a checkpoint of weights, two moments and masks, and the compact file; a MiB for what is not weights
    (dense,) = rows_of(published, "retinanet-r50-dense")
    model = (
        load_suite(find_config("published_coco.yaml"), ("data.root=/nowhere",))
        .recipes[0]
        .recipe.detector.build(80, pretrained=False)
    )
    weights = sum(value.numel() for value in model.parameters())
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert dense["disk MiB"] == pytest.approx((2 * state + 8 * weights + weights + 2**20) / 2**20, abs=0.06)


def test_what_a_plan_says_of_disk_and_hours(tiny_recipe, tmp_path, monkeypatch):
    suite = load_suite(tiny_recipe)
    rows = [{"experiment": "tiny", "disk MiB": size} for size in (1024.0, 512.0)]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free={tmp_path: 3 * 2**30}[path]))
    line = "disk: at most 1.50 GiB of weights that stay, {} GiB of checkpoints inside levels while an experiment runs; "
    free = f"3.00 GiB are free at {tmp_path}"
    folder = tmp_path / "not" / "there"
    assert summary(rows, suite, folder) == [line.format("3.00") + free + ": NOT ENOUGH"]  # keeps 2, and writes one
    inside = summary(rows, load_suite(tiny_recipe, BEST), folder)[0]
    assert inside.startswith(line.format("1.50"))  # three checkpoints, of which a level leaves two
    rows = [{**row, "disk MiB": row["disk MiB"] / 2, "hours": 0.75} for row in rows]
    found = summary(rows, suite, folder)
    assert found[0].endswith(free)
    assert found[1] == "hours: 1.5 in all, one experiment after another, without computing AP and its intervals"
