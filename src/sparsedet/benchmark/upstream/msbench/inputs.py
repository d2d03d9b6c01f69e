"""Example inputs as MSBench's users give them."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def positional(model: nn.Module, given: Any) -> tuple[Any, ...]:
    """Return the positional arguments for the forward of `model`, with tensors on its device.

    The items of a tuple are the arguments if forward takes as many, and those of a dict if its keys are names of
    arguments. Otherwise, and if it is anything else, `given` is the one argument.
    """
    parameter = next(iter(model.parameters()), None)
    given = given if parameter is None else _to(parameter.device, given)
    signature = inspect.signature(model.forward)
    is_tuple, is_dict = isinstance(given, tuple), isinstance(given, Mapping)
    try:
        bound = signature.bind(*(given if is_tuple else ()), **(given if is_dict else {}))
    except TypeError:
        return (given,)
    kinds = {signature.parameters[name].kind for name in bound.arguments}
    if not (is_tuple or is_dict) or kinds & {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}:
        return (given,)
    bound.apply_defaults()
    return bound.args


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(device, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to(device, item) for item in value)
    return value
