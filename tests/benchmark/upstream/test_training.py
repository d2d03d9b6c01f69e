import pytest

from sparsedet.benchmark.recipe import load_recipe
from sparsedet.common.errors import ConfigError

PLAIN, BN, IOU, FASTER = (f"{name}.yaml" for name in ("retina_plain", "retina_bn", "retina_iou", "faster"))
SCHEDULE = "trainer.lr_scheduler"


def at(data, path):
    for key in path.split("."):
        data = data[key]
    return data


@pytest.mark.parametrize(
    ("name", "override", "place", "expected"),
    [
        (PLAIN, f"{SCHEDULE}.warmup_type=exp", "training.lr_schedule.warmup_shape", "exponential"),
        (PLAIN, f"{SCHEDULE}.warmup_type=", "training.lr_schedule.warmup_shape", "exponential"),
        (PLAIN, f"{SCHEDULE}.warmup_ratio=-1", "training.lr_schedule.warmup_start", "unscaled"),
        (PLAIN, f"{SCHEDULE}.warmup_ratio=0", "training.lr_schedule.warmup_start", 0),
        (PLAIN, f"{SCHEDULE}.warmup_epochs=0.5", "training.lr_schedule.warmup_epochs", 0.5),
        (PLAIN, f"{SCHEDULE}.kwargs={{milestones: []}}", "training.lr_schedule.gamma", 0.1),
        (IOU, f"{SCHEDULE}.kwargs={{T_max: 4}}", "training.lr_schedule.final_lr", 0.0),
        (BN, "trainer.optimizer.kwargs.betas=[0.8, 0.9]", "training.optimizer.betas", [0.8, 0.9]),
        (BN, "ema.ema_type=exp", "training.ema.ramp_steps", 2000),
        (BN, "ema.ema_type=exp", "training.ema.ramp", "exponential"),
        (BN, "ema={enable: true, kwargs: {decay: 0.9}}", "training.ema",
         {"ramp": "linear", "decay": 0.9, "ramp_steps": 1}),
        (BN, "runtime.fp16=true", "training.precision", "fp16"),
        (BN, "runtime.fp16={scale_factor: dynamic, keep_batchnorm_fp32: true}", "training.precision", "fp16"),
        (BN, "runtime.random_seed=5", "seed", 5),
        (BN, "saver.pretrain_model=a/resnet18-5c106cde.pth", "detector.backbone.weights", "a/resnet18-5c106cde.pth"),
        (BN, "saver.pretrain_model=pretrain_path", "initial_checkpoint", "pretrain_path"),
    ],
)  # fmt: skip
def test_what_keys_become(name, override, place, expected, files, translate):
    data, notes = translate(files / name, override)
    assert at(data, place) == expected
    assert override.partition("=")[0] in notes or any(key.startswith(override.partition("=")[0]) for key in notes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epoch=", "trainer.max_epoch: expected a number, got null."),
        ("trainer.max_iter=90", "trainer.max_iter: expected one of ['lr_scheduler', 'max_epoch', "),
        ("trainer.optimizer.type=Adam", "trainer.optimizer.type: expected one of ['AdamW', 'SGD'], got 'Adam'."),
        ("trainer.optimizer.kwargs.dampening=0.1", "dampening: expected 0, got 0.1. Refused: "),
        ("trainer.optimizer.special_param_group=[{key: x}]", "special_param_group: expected [], got "),
        ("trainer.optimizer.kwargs.lr=1e", "trainer.optimizer.kwargs.lr: expected a number, got '1e'."),
        (f"{SCHEDULE}.type=StepLR", "lr_scheduler.type: expected one of ['CosineAnnealingLR', 'MultiStepLR'], got 'St"),
        (f"{SCHEDULE}.warmup_type=cosine", "warmup_type: expected one of ['exp', 'linear'], got 'cosine'."),
        (f"{SCHEDULE}.warmup_register_type=no_scale_lr", "warmup_register_type: expected base, got 'no_scale_lr'. Ref"),
        ("ema={enable: true, kwargs: {decay: 0.9, inner_T: 2}}", "ema.kwargs.inner_T: expected 1, got 2. Refused: "),
        ("ema={enable: true, ema_type: cos, kwargs: {decay: 0.9}}", "ema.ema_type: expected one of ['exp', 'linear']"),
        ("hooks.visualize={type: visualize}", "hooks.visualize.type: expected one of ['auto_checkpoint', "),
        ("hooks.grad_clipper={type: grad_clipper, kwargs: {mode: average}}", "mode: expected pre_defined, got 'averag"),
        ("saver.resume_model=a.pth", "saver.resume_model: expected null, got 'a.pth'. Refused: runs of UP are not con"),
        ("runtime.aligned=true", "runtime.aligned: expected false, got true. Refused: "),
        ("runtime.iter_base=true", "runtime.iter_base: expected false, got true. Refused: "),
        ("runtime.special_bn_init=true", "runtime.special_bn_init: expected false, got true. Refused: "),
        ("runtime.async_norm=true", "runtime.async_norm: expected false, got true. Refused: "),
        ("runtime.runner={type: quant}", "runtime.runner.type: expected one of ['base', 'sparse'], got 'quant'."),
        ("runtime.runner={type: sparse}", "runtime.runner: expected a sparsity section beside the runner 'sparse', go"),
        ("runtime.model_helper={type: mine}", "runtime.model_helper.type: expected one of ['base', 'sparse'], got 'mi"),
        ("runtime.rank_ini=true", "runtime.rank_ini: expected one of ['aligned', "),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(override, message, refusal):
    assert message in refusal(PLAIN, override)


def test_without_a_warm_up_the_peak_is_the_same_and_the_note_says_how_up_gets_there(files, translate):
    _, notes = translate(files / PLAIN, f"{SCHEDULE}.warmup_epochs=0", f"{SCHEDULE}.warmup_iter=0")
    assert any("multiplies the rate by the batch directly" in note.text for note in notes[f"{SCHEDULE}.warmup_epochs"])
    recipe = load_recipe(files / PLAIN, (f"{SCHEDULE}.warmup_epochs=0", f"{SCHEDULE}.warmup_iter=0")).recipe
    assert recipe.training.lr(0, 100, 10) == pytest.approx(0.0004 * 3)


def test_ema_is_off_where_it_is_not_enabled_and_in_runs_that_prune(files, tmp_path, translate):
    data, notes = translate(files / IOU)
    assert "ema" not in data["training"]
    assert notes["ema.kwargs"][0].text == "it is not enabled"
    path = tmp_path / "a.yaml"
    path.write_text((files / IOU).read_text() + (files / "two_four.tail.yaml").read_text())
    data, notes = translate(path, "ema.enable=true")
    assert "ema" not in data["training"]
    assert notes["ema.enable"][0].text == "UP switches it off in runs that prune"


def test_a_placeholder_for_weights_loads_and_the_note_says_what_to_give(files, translate):
    _, notes = translate(files / BN, "saver.pretrain_model=pretrain_path")
    assert any("--set initial_checkpoint=PATH" in note.text for note in notes["saver.pretrain_model"])
    _, notes = translate(files / BN)
    assert not any("--set initial_checkpoint=PATH" in note.text for note in notes["saver.pretrain_model"])


def test_epochs_are_shared_equally_by_the_levels(files, tmp_path, translate):
    path = tmp_path / "a.yaml"
    path.write_text((files / FASTER).read_text() + (files / "faster_level_wise.tail.yaml").read_text())
    with pytest.raises(
        ConfigError, match=r"trainer\.max_epoch: expected a multiple of the 3 levels of sparsity_table, got 10"
    ):
        translate(path, "trainer.max_epoch=10", "sparsity.scheduler.kwargs.no_prune_keyword=")


def test_a_sparsity_section_prunes_even_beside_ups_dense_runner(files, tmp_path, translate):
    path = tmp_path / "a.yaml"
    path.write_text((files / FASTER).read_text() + (files / "two_four.tail.yaml").read_text())
    for override, text in (("runtime.runner.type=base", "its base runner would not"), ("seed=1", "as in UP")):
        data, notes = translate(path, override)
        assert data["sparsity"]["pattern"]["type"] == "n_m"
        assert text in notes["runtime.runner.type"][0].text
