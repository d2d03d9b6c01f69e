"""Freezing and learning rates by the selectors of sparsity, which the trainer does not know."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsedet.benchmark.recipe import Recipe
from sparsedet.common.errors import TargetMatchError
from sparsedet.detection.models import Detector
from sparsedet.detection.parameters import freeze_
from sparsedet.sparsity import PREDICTION, find_predictions, match_parameters


@dataclass(frozen=True)
class ParameterChoice:
    """What the selectors of a recipe choose.

    Attributes:
        lr_factors: factor on the learning rate by the name of the parameter; those not named have 1.
        lines: what was frozen and whose rate is scaled, in words.
    """

    lr_factors: dict[str, float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def choose_parameters_(recipe: Recipe, model: Detector, inputs: Callable[[], tuple[Any, ...]]) -> ParameterChoice:
    """Freeze the parameters that ``training.freeze`` names; return what ``training.lr_multipliers`` says of the others.

    Args:
        recipe: what names them.
        model: its detector.
        inputs: gives example inputs, which ``preset:prediction`` needs.

    Raises:
        TargetMatchError: a selector matches no parameter, or a multiplier's none that is trained.
    """
    freeze, multipliers = recipe.training.freeze, recipe.training.lr_multipliers
    predictions = find_predictions(model, inputs(), model.run_all) if PREDICTION in {*freeze, *multipliers} else None
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def line(what: str, selector: str, names: frozenset[str]) -> str:
        share = sum(numel[name] for name in names) / sum(numel.values())
        number = f"{len(names)} parameter{'s' if len(names) != 1 else ''}"
        return f"{what} '{selector}': {number}, {share:.1%} of all values"

    lines, factors = [], dict[str, float]()
    for index, selector in enumerate(freeze):
        names = match_parameters(f"training.freeze[{index}]", selector, model, predictions)
        freeze_(model, names)
        lines.append(line("frozen:", selector, names))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for selector, factor in multipliers.items():
        path = f"training.lr_multipliers.{selector}"
        names = match_parameters(path, selector, model, predictions) & trained
        if not names:
            raise TargetMatchError(f"{path}: expected a parameter that is trained, got none. Remove it.")
        factors |= {name: factors.get(name, 1.0) * factor for name in names}
        lines.append(line(f"learning rate x {factor:g}:", selector, names))
    return ParameterChoice(factors, tuple(lines))
