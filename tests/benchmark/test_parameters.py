import pytest
import torch

from sparsedet.benchmark.analysis import analyze_file
from sparsedet.benchmark.parameters import choose_parameters_
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.common.errors import ConfigError, TargetMatchError
from sparsedet.sparsity import find_predictions

INPUTS = (torch.zeros(1, 3, 64, 64),)


def choose(path, *overrides):
    recipe = load_recipe(path, overrides).recipe
    model = recipe.detector.build(2, pretrained=False)
    return model, choose_parameters_(recipe, model, lambda: INPUTS)


def test_by_default_all_is_trained_alike(tiny_recipe):
    recipe = load_recipe(tiny_recipe).recipe
    model = recipe.detector.build(2, pretrained=False)
    chosen = choose_parameters_(recipe, model, lambda: pytest.fail("no inputs are needed"))
    assert (chosen.lr_factors, chosen.lines) == ({}, ())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_and_scaled(tiny_recipe):
    model, chosen = choose(
        tiny_recipe,
        "training.freeze=['backbone.layer1.*', type:BatchNorm2d]",
        "training.lr_multipliers={'backbone.*': 0.1, preset:prediction: 2, '*': 0.5}",
    )
    names = {name for name, _ in model.named_parameters()}
    norms = {f"{name}.{kind}" for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
             for kind in ("weight", "bias")}  # fmt: skip
    frozen = {name for name in names if name.startswith("backbone.layer1.")} | norms
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    layers = {name.removesuffix(".weight") for name in find_predictions(model, INPUTS, model.run_all)}
    assert len(layers) == 2
    for name in names - frozen:
        backbone = 0.1 if name.startswith("backbone.") else 1.0
        prediction = 2 if name.rpartition(".")[0] in layers else 1.0
        assert chosen.lr_factors[name] == pytest.approx(backbone * prediction * 0.5)
    assert frozen.isdisjoint(chosen.lr_factors)
    assert len(chosen.lines) == 5
    total = sum(parameter.numel() for parameter in model.parameters())
    share = sum(parameter.numel() for name, parameter in model.named_parameters() if name in norms) / total
    assert chosen.lines[1] == f"frozen: 'type:BatchNorm2d': {len(norms)} parameters, {share:.1%} of all values"
    assert chosen.lines[3].startswith("learning rate x 2: 'preset:prediction': 4 parameters, ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.freeze=['*', neck]", r"training.freeze\[1\]: expected a pattern that matches a parameter, got"),
        ("training.lr_multipliers={'nick.*': 2}", r"training.lr_multipliers.nick.\*: expected a pattern that matches"),
        ("training={freeze: ['neck.*'], lr_multipliers: {'neck.*': 2}}", "a parameter that is trained, got none"),
    ],
)  # fmt: skip
def test_selectors_that_choose_nothing_are_refused(override, message, tiny_recipe):
    with pytest.raises(TargetMatchError, match=message):
        choose(tiny_recipe, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.freeze=['preset:steam']", r"training.freeze: expected one of .* got 'steam'. Did you mean 'stem'"),
        ("training.lr_multipliers={'re:(': 2}", "training.lr_multipliers: expected a regular expression"),
        ("training.lr_multipliers={'*': 0}", "greater than 0, got 0"),
    ],
)
def test_wrong_selectors_and_factors_are_refused_with_the_recipe(override, message, tiny_recipe):
    with pytest.raises(ConfigError, match=message):
        load_recipe(tiny_recipe, (override,))


def test_an_analysis_knows_what_is_frozen(tiny_recipe):
    settings = ("sparsity={schedule: {type: one_shot, sparsity: 0.5}}", "training.freeze=[preset:stem]")
    rows = {row["name"]: row for row in analyze_file(tiny_recipe, settings).rows}
    stem = rows.pop("backbone.conv1.weight")
    assert (stem["chosen"], stem["reason"]) == (False, "frozen (requires_grad is False)")
    assert all(row["chosen"] for row in rows.values())
