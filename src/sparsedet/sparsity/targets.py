r"""Which weights are pruned, and for every other one the reason why not.

Candidates are the weights of all convolutions (1d, 2d, 3d, transposed) and linear layers, subclasses
included. A weight that several layers share is one candidate, under its first name. Names are those of the
plain model: a wrapper of DistributedDataParallel, DataParallel, AveragedModel or torch.compile adds nothing
to them.

A pattern in `include` or `exclude` is one of

==================  ======================================================================================
``head.cls_pred``   exact name of a layer or of its weight (``head.cls_pred.weight``)
``head.*``          glob over whole names: ``*`` any text (dots too), ``?`` one character, ``[ab]`` one of
``re:head\.\d+``    regular expression that matches the whole name
``type:Conv2d``     class name of the layer or of one of its base classes
``preset:…``        a kind of layer: ``depthwise``, convolutions with one input channel in each group
==================  ======================================================================================

A pattern that matches nothing is an error, except a preset: a model need not have layers of that kind.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import field_validator
from torch import Tensor, nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError, TargetMatchError, UnsupportedShapeError, did_you_mean
from sparsedet.sparsity.patterns import Pattern

WEIGHTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
"""Layers whose weight can be pruned."""


def _is_depthwise(module: nn.Module) -> bool:
    return module.groups == module.in_channels > 1 if isinstance(module, nn.modules.conv._ConvNd) else False


PRESETS = {"depthwise": _is_depthwise}
"""Name after ``preset:`` -> whether a layer is of that kind."""

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.optim.swa_utils.AveragedModel)


@dataclass(frozen=True)
class Weight:
    """The weight of a convolution or linear layer.

    Attributes:
        names: full parameter names, more than one if layers share it; the first is the one in use.
        modules: the layers that hold it.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        """Full parameter name."""
        return self.names[0]

    @property
    def tensor(self) -> Tensor:
        """The weight as the layer holds it now."""
        weight = self.modules[0].weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def is_parameter(self) -> bool:
        """Whether the layer holds it as a plain parameter, not computed by a parametrization or hook."""
        return any(name == "weight" for name, _ in self.modules[0].named_parameters(recurse=False))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(name.removesuffix("weight").removesuffix(".") for name in self.names)


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

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    include_frozen: bool = False

    @field_validator("include", "exclude")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            preset = pattern.removeprefix("preset:")
            if pattern.startswith("preset:") and preset not in PRESETS:
                known = sorted(PRESETS)
                hint = did_you_mean(preset, known)
                raise ConfigError(f"expected one of {known} after 'preset:', got '{preset}'.{hint} Correct it.")
            try:
                re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
            except re.error as error:
                raise ConfigError(
                    f"expected a regular expression after 're:', got '{pattern}' ({error}). Correct it."
                ) from error
        return patterns

    def select(self, weights: Sequence[Weight], pattern: Pattern) -> tuple[Selected, ...]:
        """Return one row for each weight.

        Raises:
            TargetMatchError: a pattern matches no weight, or no weight is chosen.
            UnsupportedShapeError: a weight included by its exact name cannot be served by `pattern`.
        """
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for index, text in enumerate(patterns):
                if not text.startswith("preset:") and not any(_matches(text, weight) for weight in weights):
                    raise TargetMatchError(_no_match(f"sparsity.targets.{key}[{index}]", text, weights))
        rows = tuple(self._row(weight, pattern) for weight in weights)
        if not any(row.chosen for row in rows):
            reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(row.reason for row in rows).items())
            raise TargetMatchError(
                "sparsity.targets: expected at least one weight to prune, "
                f"got none ({reasons or 'no conv or linear layer'}). Widen include, or shorten exclude."
            )
        return rows

    def _row(self, weight: Weight, pattern: Pattern) -> Selected:
        chosen, reason = self._decide(weight, pattern)
        module_type = type(weight.modules[0]).__name__
        return Selected(weight.name, module_type, tuple(weight.tensor.shape), weight.tensor.numel(), chosen, reason)

    def _decide(self, weight: Weight, pattern: Pattern) -> tuple[bool, str]:
        for text in self.exclude:
            if _matches(text, weight):
                return False, f"exclude '{text}'"
        included = [text for text in self.include if _matches(text, weight)]
        if not included:
            return False, "not in include"
        named = next((text for text in included if _is_name(text)), None)
        refusal = self._refusal(weight) or pattern.unserved(weight.modules[0])
        if refusal and named:
            raise UnsupportedShapeError(
                f"sparsity.targets.include: expected a weight that can be pruned, got '{named}' of shape "
                f"{tuple(weight.tensor.shape)}: {refusal}. Remove it from include, or {self._remedy(weight)}."
            )
        return (False, refusal) if refusal else (True, f"include '{named or included[0]}'")

    def _refusal(self, weight: Weight) -> str | None:
        if not weight.is_parameter:
            return "not a plain parameter (computed by a parametrization)"
        if not weight.tensor.requires_grad and not self.include_frozen:
            return "frozen (requires_grad is False)"
        return None

    def _remedy(self, weight: Weight) -> str:
        if not weight.is_parameter:
            return "remove the parametrization"
        if not weight.tensor.requires_grad and not self.include_frozen:
            return "set include_frozen: true"
        return "use the pattern type 'unstructured'"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain model inside wrappers of DDP, averaging and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_weights(model: nn.Module) -> tuple[Weight, ...]:
    """Return the weights of all convolutions and linear layers in the order of the model.

    Raises:
        ConfigError: a lazy layer has no shape yet.
    """
    found: dict[int, tuple[list[str], list[nn.Module]]] = {}
    for module_name, module in unwrap(model).named_modules(remove_duplicate=False):
        if not isinstance(module, WEIGHTED):
            continue
        name = ".".join(part for part in (*module_name.split("."), "weight") if part and part != "_orig_mod")
        parameter = dict(module.named_parameters(recurse=False)).get("weight")
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(f"model: expected weights with a shape, got the lazy layer '{name}'. Run it once first.")
        names, modules = found.setdefault(id(module if parameter is None else parameter), ([], []))
        names.append(name)
        if module not in modules:
            modules.append(module)
    return tuple(Weight(tuple(names), tuple(modules)) for names, modules in found.values())


def _is_name(pattern: str) -> bool:
    return not pattern.startswith(("re:", "type:", "preset:")) and not set(pattern) & set("*?[")


def _matches(pattern: str, weight: Weight) -> bool:
    if pattern.startswith("type:"):
        wanted = pattern.removeprefix("type:")
        return any(base.__name__ == wanted for module in weight.modules for base in type(module).__mro__)
    if pattern.startswith("preset:"):
        return any(map(PRESETS[pattern.removeprefix("preset:")], weight.modules))
    names = (*weight.names, *weight.layer_names)
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern.removeprefix("re:"), name) for name in names)
    if _is_name(pattern):
        return pattern in names
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _no_match(path: str, pattern: str, weights: Sequence[Weight]) -> str:
    """Say that `pattern` matches nothing, with the nearest thing that would."""
    names = [name for weight in weights for name in weight.layer_names]
    types = [f"type:{type(module).__name__}" for weight in weights for module in weight.modules]
    hint = did_you_mean(pattern, types if pattern.startswith("type:") else names)
    if any(name.startswith(f"{pattern}.") for name in names):
        hint = f" Did you mean '{pattern}.*', everything inside it?"
    elif pattern in {name.removeprefix("type:") for name in types}:
        hint = f" Did you mean 'type:{pattern}'?"
    return (
        f"{path}: expected a pattern that matches a conv or linear layer, got '{pattern}', "
        f"which matches none of {len(weights)}.{hint} Correct or remove it."
    )
