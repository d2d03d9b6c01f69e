r"""Which weights are pruned, and for every other one the reason why not.

Candidates are the weights that `sparsedet.sparsity.weights.find_weights` finds, under the names of the plain
model. A weight that several layers share is one candidate, under its first name, and answers to all of its
names: it is left out if any of them is excluded.

A pattern in `include` or `exclude`, and wherever else weights are named, is one of

==================  ======================================================================================
``head.cls_pred``   exact name of a layer or of its weight (``head.cls_pred.weight``)
``head.*``          glob over whole names: ``*`` any text (dots too), ``?`` one character, ``[ab]`` one of
``re:head\.\d+``    regular expression that matches the whole name
``type:Conv2d``     class name of the layer or of one of its base classes
``preset:…``        a kind of layer:
                    ``depthwise``, convolutions with one input channel in each group;
                    ``grouped``, convolutions with more than one group, depthwise ones too;
                    ``stem``, the first convolution of the model, provided that no other reads fewer channels
                    (one does where a head is registered before the backbone: that is an error);
                    ``prediction``, the layers that give the model's outputs: those called by the forward whose
                    output no other conv or linear layer reads, as far as gradients flow (needs example inputs)
==================  ======================================================================================

A pattern that matches nothing is an error, except ``preset:depthwise`` and ``preset:grouped``: a model need not have
such layers.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator
from torch import nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError, TargetMatchError, UnsupportedShapeError, did_you_mean
from sparsedet.sparsity.patterns import Pattern
from sparsedet.sparsity.weights import CONVOLUTIONS, Weight

PRESETS = ("depthwise", "grouped", "prediction", "stem")
"""Names after ``preset:``."""

MAY_MATCH_NOTHING = ("preset:depthwise", "preset:grouped")

PREDICTION = "preset:prediction"
"""The one pattern that needs a forward pass, see `sparsedet.sparsity.predictions.find_predictions`."""


def check_selector(selector: str) -> str:
    """Return `selector` if it is a pattern that names weights (see the module).

    Raises:
        ConfigError: the preset is unknown, or the regular expression is wrong.
    """
    preset = selector.removeprefix("preset:")
    if selector.startswith("preset:") and preset not in PRESETS:
        known = sorted(PRESETS)
        raise ConfigError(
            f"expected one of {known} after 'preset:', got '{preset}'.{did_you_mean(preset, known)} Correct it."
        )
    try:
        re.compile(selector.removeprefix("re:") if selector.startswith("re:") else "")
    except re.error as error:
        raise ConfigError(
            f"expected a regular expression after 're:', got '{selector}' ({error}). Correct it."
        ) from error
    return selector


Selector = Annotated[str, AfterValidator(check_selector)]
"""A pattern that names weights (see the module)."""


@dataclass(frozen=True)
class Selected:
    """One row of the table of weights.

    Attributes:
        name: full parameter name.
        module_type: class of the layer.
        shape: shape of the weight.
        numel: number of its entries.
        chosen: whether it is pruned.
        reason: the rule that decided it.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    numel: int
    chosen: bool
    reason: str


class Targets(ConfigModel):
    """Choose weights by patterns (see the module); a weight is chosen if it is included and not excluded.

    Attributes:
        include: patterns of weights to prune.
        exclude: patterns of weights to leave out; wins over `include`.
        include_frozen: also prune weights that do not require a gradient.
    """

    include: tuple[Selector, ...] = ("*",)
    exclude: tuple[Selector, ...] = ()
    include_frozen: bool = False

    def select(
        self, weights: Sequence[Weight], pattern: Pattern, predictions: Collection[str] | None = None
    ) -> tuple[Selected, ...]:
        """Return one row for each weight.

        Args:
            weights: all weights of the model.
            pattern: what must be able to serve a weight.
            predictions: names of the weights that ``preset:prediction`` means; None: not known.

        Raises:
            TargetMatchError: a pattern matches no weight, a preset cannot be told, or no weight is chosen.
            UnsupportedShapeError: a weight included by its exact name cannot be pruned or served by `pattern`.
        """
        if not weights:
            raise TargetMatchError(
                "sparsity.targets: expected at least one weight to prune, got none (no conv or linear layer). "
                "Prune a model that has some."
            )
        include = match("sparsity.targets.include", self.include, weights, predictions)
        exclude = match("sparsity.targets.exclude", self.exclude, weights, predictions)
        rows = []
        for weight in weights:
            is_spared = pattern.kills_channels and weight.name in (predictions or ())
            chosen, reason = self._decide(weight, pattern, is_spared, _by(weight, include), _by(weight, exclude))
            module_type, shape = type(weight.modules[0]).__name__, tuple(weight.tensor.shape)
            rows.append(Selected(weight.name, module_type, shape, weight.tensor.numel(), chosen, reason))
        if not any(row.chosen for row in rows):
            reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(row.reason for row in rows).items())
            raise TargetMatchError(
                "sparsity.targets: expected at least one weight to prune, "
                f"got none ({reasons}). Widen include, or shorten exclude."
            )
        return tuple(rows)

    def _decide(
        self, weight: Weight, pattern: Pattern, is_spared: bool, include: Sequence[str], exclude: Sequence[str]
    ) -> tuple[bool, str]:
        if exclude:
            return False, f"exclude '{exclude[0]}'"
        if not include:
            return False, "not in include"
        named = next((text for text in include if _names(text, weight)), None)
        refusal = self._refusal(weight, pattern, is_spared)
        if refusal is None:
            return True, f"include '{named or include[0]}'"
        reason, remedy = refusal
        if named:
            raise UnsupportedShapeError(
                f"sparsity.targets.include: expected a weight that can be pruned, got '{named}' of shape "
                f"{tuple(weight.tensor.shape)}: {reason}. Remove it from include, or {remedy}."
            )
        return False, reason

    def _refusal(self, weight: Weight, pattern: Pattern, is_spared: bool) -> tuple[str, str] | None:
        """Return why the weight cannot be pruned, and what to do about it."""
        tensor = weight.tensor
        rules = (
            (
                not weight.is_parameter,
                "no parameter of the layer (a buffer, or computed by a parametrization or hook)",
                "make it one",
            ),
            (bool(weight.others), f"shared with {', '.join(weight.others)}", "give each module a weight of its own"),
            (tensor.is_complex(), f"complex ({tensor.dtype})", "hold real and imaginary parts in two layers"),
            (tensor.numel() == 0, "empty", "give the layer channels"),
            (tensor.is_meta, "without values (meta device)", "move the model to a device"),
            (
                not tensor.requires_grad and not self.include_frozen,
                "frozen (requires_grad is False)",
                "set include_frozen: true",
            ),
            (is_spared, "its channels are outputs of the model", "use the pattern type 'unstructured'"),
        )
        for applies, reason, remedy in rules:
            if applies:
                return reason, remedy
        unserved = pattern.unserved_by(weight)
        return None if unserved is None else (unserved, "use the pattern type 'unstructured'")


def match(
    path: str, selectors: Sequence[str], weights: Sequence[Weight], predictions: Collection[str] | None = None
) -> dict[str, frozenset[str]]:
    """Return the names of the weights that each pattern matches.

    Args:
        path: key path of the patterns, for messages.
        selectors: patterns (see the module).
        weights: what they choose from.
        predictions: names of the weights that ``preset:prediction`` means; None: not known.

    Raises:
        TargetMatchError: a pattern matches nothing, or a preset cannot be told.
    """
    return {
        selector: match_one(f"{path}[{index}]", selector, weights, predictions)
        for index, selector in enumerate(selectors)
    }


def match_one(
    path: str,
    selector: str,
    weights: Sequence[Weight],
    predictions: Collection[str] | None = None,
    kind: str = "conv or linear layer",
) -> frozenset[str]:
    """Do what `match` does with one pattern; `path` is its own, `kind` is what it chooses from, for messages."""
    if selector == PREDICTION and predictions is None:
        raise TargetMatchError(
            f"{path}: expected example inputs, which '{PREDICTION}' needs, got none. Write for example "
            "sparsity.input_shape: [1, 3, 800, 1333], pass example_inputs, or name the layers."
        )
    if selector.startswith("preset:"):
        names = _preset(path, selector, weights, predictions or ())
    else:
        exact = frozenset(weight.name for weight in weights if _names(selector, weight))
        names = exact or frozenset(weight.name for weight in weights if _matches(selector, weight))
    if not names and selector not in MAY_MATCH_NOTHING:
        raise TargetMatchError(_no_match(path, selector, weights, kind))
    return names


def _preset(path: str, selector: str, weights: Sequence[Weight], predictions: Collection[str]) -> frozenset[str]:
    if selector == PREDICTION:
        return frozenset(weight.name for weight in weights if weight.name in predictions)
    if selector == "preset:depthwise":
        return frozenset(weight.name for weight in weights if any(map(_is_depthwise, weight.modules)))
    if selector == "preset:grouped":
        return frozenset(weight.name for weight in weights if any(map(_is_grouped, weight.modules)))
    convolutions = [
        (module.in_channels, weight.name) for weight in weights if isinstance(module := weight.modules[0], CONVOLUTIONS)
    ]
    if not convolutions:
        raise TargetMatchError(f"{path}: expected a model with a convolution, got none. Name its first layer.")
    (num_channels, name), (fewest, other) = convolutions[0], min(convolutions)
    if fewest < num_channels:
        raise TargetMatchError(
            f"{path}: expected the first convolution to read the fewest channels, got '{name}' which reads "
            f"{num_channels} and '{other}' which reads {fewest}. Name the stem."
        )
    return frozenset([name])


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels > 1


def _is_grouped(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups > 1


def _by(weight: Weight, found: dict[str, frozenset[str]]) -> list[str]:
    return [selector for selector, names in found.items() if weight.name in names]


def _names(selector: str, weight: Weight) -> bool:
    """Tell whether a pattern is the exact name of a weight or of a layer that holds it."""
    return selector in (*weight.names, *weight.layer_names)


def _matches(pattern: str, weight: Weight) -> bool:
    if pattern.startswith("type:"):
        wanted = pattern.removeprefix("type:")
        return any(base.__name__ == wanted for module in weight.modules for base in type(module).__mro__)
    names = (*weight.names, *weight.layer_names)
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern.removeprefix("re:"), name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _no_match(path: str, pattern: str, weights: Sequence[Weight], kind: str) -> str:
    """Say that `pattern` matches nothing, with the nearest thing that would."""
    names = [name for weight in weights for name in weight.layer_names]
    types = [f"type:{type(module).__name__}" for weight in weights for module in weight.modules]
    hint = did_you_mean(pattern, types if pattern.startswith("type:") else names)
    if any(name.startswith(f"{pattern}.") for name in names):
        hint = f" Did you mean '{pattern}.*', everything inside it?"
    elif pattern in {name.removeprefix("type:") for name in types}:
        hint = f" Did you mean 'type:{pattern}'?"
    return (
        f"{path}: expected a pattern that matches a {kind}, got '{pattern}', "
        f"which matches none of {len(weights)}.{hint} Correct or remove it."
    )
