"""Which parameters are trained, and how fast beside the others."""

from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsedet.common.errors import ConfigError


def freeze_(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters `names` have no gradient, and norms all of whose parameters have none be in eval mode."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    _freeze_norms_(model)


def train_(model: nn.Module) -> None:
    """Put a model into training mode, but for norms that are frozen: their running statistics stay, too."""
    model.train()
    _freeze_norms_(model)


def by_factor(model: nn.Module, factors: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """Return the parameters that are trained by the factor on their learning rate; those without one have 1.

    Raises:
        ConfigError: none is trained.
    """
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(factors.get(name, 1.0), []).append(parameter)
    if not found:
        raise ConfigError("training.freeze: expected a parameter left to train, got all of them frozen. Shorten it.")
    return found


def _freeze_norms_(model: nn.Module) -> None:
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and not any(own.requires_grad for own in norm.parameters()):
            norm.eval()
