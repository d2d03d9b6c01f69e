"""All parameters of a model, biases and norms included, chosen by the patterns that name weights for pruning."""

from collections.abc import Collection

from torch import nn

from sparsedet.sparsity.targets import match_one
from sparsedet.sparsity.weights import Weight, find_weights


def match_parameters(
    path: str, selector: str, model: nn.Module, predictions: Collection[str] | None = None
) -> frozenset[str]:
    """Return the names of the parameters that a pattern of `sparsedet.sparsity.targets` matches.

    Here it chooses from all parameters: the name of a layer, its type and a preset mean all that the layer itself
    holds. A parameter that several layers share has its first name, as in ``model.named_parameters()``, and answers to
    all of its names.

    Args:
        path: key path of the pattern, for messages.
        selector: the pattern.
        model: the plain module.
        predictions: names of the weights that ``preset:prediction`` means; None: not known.

    Raises:
        TargetMatchError: it matches nothing, or a preset cannot be told.
    """
    parameters = _parameters(model)
    if not selector.startswith("preset:"):
        return match_one(path, selector, parameters, kind="parameter")
    weights = find_weights(model)
    names = match_one(path, selector, weights, predictions)
    layers = {module for weight in weights if weight.name in names for module in weight.modules}
    return frozenset(parameter.name for parameter in parameters if layers.intersection(parameter.modules))


def _parameters(model: nn.Module) -> tuple[Weight, ...]:
    """Return every parameter with all of its names and the modules that hold it."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return tuple(Weight(tuple(each), tuple(_holder(model, name) for name in each)) for each in names.values())


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    prefix, _, attribute = name.rpartition(".")
    return model.get_submodule(prefix), attribute
