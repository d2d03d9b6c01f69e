"""Criteria that look at data, and re-estimation of batch norms, in runs of a tiny detector."""

import pytest
import torch
from torch import nn

from sparsedet.benchmark.analysis import analyze_file
from sparsedet.benchmark.calibration import TrainingBatches, calibration_of, detector_loss, run_detector
from sparsedet.benchmark.checkpoint import open_checkpoint
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import Evaluation
from sparsedet.benchmark.experiment import check_recipe
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.sensitivity import measure_ap
from sparsedet.benchmark.suite import load_suite, run_suite
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.loader import train_loader
from sparsedet.detection.data.splits import open_splits
from sparsedet.detection.models import FasterRCNNConfig, FPNConfig, ResNetConfig
from sparsedet.sparsity import Activation, Gradient, Magnitude, Obc, OneShot, Sparsifier
from sparsedet.sparsity.weights import find_weights

DEVICE = torch.device("cpu")
FAST = ("training.steps=2", "evaluation.after_pruning=false")


def run(path, folder, *overrides):
    (*records,) = run_suite(load_suite(path, overrides), folder, "cpu", Console(quiet=True))
    return records


def sparsity(criterion, schedule="{type: level_wise, levels: [0.5, 0.8]}"):
    return f"sparsity={{schedule: {schedule}, criterion: {criterion}, targets: {{exclude: [backbone.conv1]}}}}"


def weights_of(folder, level):
    return load_checkpoint(folder / "tiny" / level / "checkpoint.pt")["model"]


def test_batches_are_those_of_the_first_steps(tiny_recipe):
    recipe = load_recipe(
        tiny_recipe,
        (
            "training.batch_size=4",
            "training.forward_batch_size=2",
            "data.sampler={type: aspect_ratio_groups}",
        ),
    ).recipe
    splits = open_splits(recipe.data, recipe.seed)
    expected = list(train_loader(splits.train, 2, range(3), 32, 2))
    batches = TrainingBatches(recipe, splits, 32, DEVICE)
    for _ in range(2):
        found = [batch for batch, _ in zip(batches, range(6), strict=False)]
        assert [batch.image_ids for batch in found] == [batch.image_ids for batch in expected]
        assert all(torch.equal(one.images, other.images) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("criterion", ["random", "gradient", "activation", "obc"])
def test_level_wise_runs_prune_by_the_criterion(criterion, tiny_recipe, tmp_path):
    settings = (sparsity(f"{{type: {criterion}}}"), *FAST)
    records = run(tiny_recipe, tmp_path / "run", *settings)
    assert [record.measured_sparsity for record in records] == pytest.approx([0.5, 0.8], abs=1e-4)
    run(tiny_recipe, tmp_path / "magnitude", sparsity("{type: magnitude}"), *FAST)
    name = "backbone.layer2.0.conv1.weight"
    zeros, others = (weights_of(tmp_path / run, "sparsity-0.5")[name] == 0 for run in ("run", "magnitude"))
    assert not torch.equal(zeros, others)
    assert (weights_of(tmp_path / "run", "sparsity-0.8")[name][zeros] == 0).all()


@pytest.mark.parametrize("criterion", ["gradient", "obc"])
def test_a_resumed_run_makes_the_same_masks(criterion, tiny_recipe, tmp_path):
    settings = (sparsity(f"{{type: {criterion}, num_batches: 2}}"), *FAST)
    run(tiny_recipe, tmp_path, *settings)
    whole = weights_of(tmp_path, "sparsity-0.8")
    (tmp_path / "tiny" / "sparsity-0.8" / "checkpoint.pt").unlink()
    run(tiny_recipe, tmp_path, *settings)
    assert all(torch.equal(value, whole[key]) for key, value in weights_of(tmp_path, "sparsity-0.8").items())


def test_batch_norms_are_estimated_anew_after_pruning(tiny_recipe, tmp_path):
    """Without training in the way: one-shot pruning of a checkpoint in no steps."""
    run(tiny_recipe, tmp_path / "dense", "training.steps=8")
    start = f"initial_checkpoint={tmp_path}/dense/tiny/dense/checkpoint.pt"
    settings = (sparsity("{type: magnitude}", "{type: one_shot, sparsity: 0.8}"), start, "training.steps=0")
    (plain,) = run(tiny_recipe, tmp_path / "plain", *settings)
    (record,) = run(tiny_recipe, tmp_path / "again", *settings, "reestimate_batch_norm=3")
    assert plain.ap_after_reestimation is None
    assert record.ap_after_pruning == plain.ap_after_pruning == plain.ap
    assert record.ap_after_reestimation == record.ap
    one, other = (weights_of(tmp_path / name, "sparsity-0.8") for name in ("plain", "again"))
    changed = {key for key, value in one.items() if not torch.equal(value, other[key])}
    assert changed == {key for key in one if key.endswith((".running_mean", ".running_var"))}
    # the first norm, by hand: mean over three batches of what the first convolution gives
    recipe = load_recipe(tiny_recipe).recipe
    batches = TrainingBatches(recipe, open_splits(recipe.data, recipe.seed), 64, DEVICE)
    outputs = [
        nn.functional.conv2d(batch.images, other["backbone.conv1.weight"], stride=2, padding=3)
        for batch, _ in zip(batches, range(3), strict=False)
    ]
    expected = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(other["backbone.bn1.running_mean"], expected, rtol=1e-4, atol=1e-5)


def test_an_average_of_the_weights_gets_what_pruning_changes(tiny_recipe, tmp_path):
    settings = (
        sparsity("{type: obc, num_batches: 2}", "{type: one_shot, sparsity: 0.5}"),
        "training.ema={decay: 0.5}",
        "training.steps=0",
        "reestimate_batch_norm=2",
        "evaluation.after_pruning=false",
    )
    run(tiny_recipe, tmp_path / "average", *settings)
    run(tiny_recipe, tmp_path / "plain", *settings, "training.ema=null")
    one, other = (weights_of(tmp_path / name, "sparsity-0.5") for name in ("average", "plain"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_detectors_whose_norms_are_all_frozen_are_refused(tiny_recipe, tmp_path):
    settings = (
        sparsity("{type: magnitude}", "{type: one_shot, sparsity: 0.5}"),
        "detector.backbone.norm=batch_norm_fixed_stats",
        "detector.neck.norm=none",
        "detector.head.norm=none",
        "reestimate_batch_norm=2",
        *FAST,
    )
    with pytest.raises(
        ConfigError, match=r"model: expected a batch norm whose statistics may change, got none \(\d+ fro"
    ):
        run(tiny_recipe, tmp_path, *settings)


@pytest.mark.parametrize("criterion", [Activation(num_batches=1), Gradient(num_batches=1), Obc(num_batches=1)])
def test_faster_rcnn_runs_its_box_head_too(criterion, tiny_recipe):
    recipe = load_recipe(
        tiny_recipe, (sparsity(f"{{type: {criterion.type}}}", "{type: one_shot, sparsity: 0.5}"),)
    ).recipe
    config = FasterRCNNConfig(
        backbone=ResNetConfig(type="resnet18", width=16, levels=(2, 3, 4, 5)),
        neck=FPNConfig(channels=16, extra="pool", norm="none"),
        roi_head={"channels": 16},
    )
    torch.manual_seed(0)
    model = config.build(2)
    weights = [weight for weight in find_weights(model) if weight.name.startswith(("rpn", "box_head"))]
    calibration = calibration_of(recipe, open_splits(recipe.data, recipe.seed), model.stride, DEVICE)
    if criterion.updates_weights:
        counts = [weight.tensor.numel() // 2 for weight in weights]
        masks = criterion.prune_(model, weights, counts, {}, recipe.sparsity.pattern, calibration)
        assert [int((~mask).sum()) for mask in masks.values()] == counts
    else:
        statistics = criterion.statistics(model, weights, calibration)
        assert len(statistics) == 7
        assert all(statistic.count_nonzero() > 0 for statistic in statistics.values())
    assert model.training


def test_the_loss_is_that_of_training(tiny_recipe):
    recipe = load_recipe(tiny_recipe).recipe
    splits = open_splits(recipe.data, recipe.seed)
    torch.manual_seed(0)
    model = recipe.detector.build(2)
    batch = next(iter(TrainingBatches(recipe, splits, model.stride, DEVICE)))
    expected = sum(term.item() for term in model.losses(model(batch.images), batch.targets).values())
    assert detector_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert run_detector(model.eval(), batch) is not None


def test_checks_and_analyses_give_the_criterion_its_data(tiny_recipe, tmp_path):
    overrides = (sparsity("{type: activation, num_batches: 1}"),)
    recipe = load_recipe(tiny_recipe, overrides).recipe
    check_recipe(recipe)
    rows = analyze_file(tiny_recipe, overrides).rows
    total = sum(row["num_weights"] for row in rows)
    assert sum(row["allocated_0.5"] * row["num_weights"] for row in rows) == pytest.approx(0.5 * total, abs=1)
    splits = open_splits(recipe.data, recipe.seed)
    assert calibration_of(load_recipe(tiny_recipe).recipe, splits, 32, DEVICE) is None
    magnitude = recipe.model_copy(update={"sparsity": recipe.sparsity.model_copy(update={"criterion": Magnitude()})})
    assert calibration_of(magnitude, splits, 32, DEVICE) is None
    absent = (*overrides, "data.num_classes=2", f"data.root={tmp_path}")
    with pytest.raises(ConfigError, match="calibration: expected data, which the criterion 'activation' looks at"):
        analyze_file(tiny_recipe, absent)


def test_sensitivity_is_measured_by_the_criterion_of_the_recipe(tiny_recipe, tmp_path, monkeypatch):
    """Of what is left the sum of magnitudes stands for AP; `Sparsifier` says what should be."""
    run(tiny_recipe, tmp_path / "run", sparsity("{type: activation}", "{type: one_shot, sparsity: 0.3}"), *FAST)
    checkpoint = tmp_path / "run" / "tiny" / "sparsity-0.3" / "checkpoint.pt"
    name, keep = "neck.lateral.4.conv.weight", "sparsity.targets={include: [neck.lateral.4.conv]}"

    def left(model):
        return float(dict(model.named_parameters())[name].detach().abs().sum())

    monkeypatch.setattr(Evaluation, "detect", lambda self: [])
    monkeypatch.setattr(Evaluation, "metrics", lambda self, results: {"ap": left(self.saved.model)})
    values = {}
    for criterion in (None, "magnitude"):
        settings = (keep, *([f"sparsity.criterion={{type: {criterion}}}"] if criterion else []))
        console = Console(quiet=True)
        curves, _ = measure_ap(checkpoint, tmp_path / str(criterion), [0.8], 1, settings, "cpu", console)
        values[criterion] = curves.curves[name][0].value
        saved = open_checkpoint(checkpoint, settings)
        recipe, model = saved.recipe, saved.model
        config = recipe.sparsity.model_copy(update={"scope": "chosen", "schedule": OneShot(sparsity=0.8)})
        calibration = calibration_of(recipe, open_splits(recipe.data, recipe.seed), model.stride, DEVICE)
        Sparsifier(model, config, calibration=calibration).prune_(0)
        assert values[criterion] == pytest.approx(left(model), rel=1e-6)
    assert values["magnitude"] > values[None]  # which no other choice exceeds
    settings = (keep, "sparsity.criterion={type: obc}")
    with pytest.raises(ConfigError, match=r"leaves the other weights as they are, got 'obc'\. Use 'magnitude'"):
        measure_ap(checkpoint, tmp_path / "obc", [0.8], 1, settings, "cpu", Console(quiet=True))
