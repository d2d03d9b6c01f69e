"""How sparse a model really is: zeros are counted in its weights, never in masks."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity.distributed import whole
from sparsedet.sparsity.profile import Profile
from sparsedet.sparsity.weights import find_weights, unwrap


@dataclass(frozen=True)
class LayerMeasurement:
    """Zeros of one conv or linear weight.

    Attributes:
        name: full parameter name.
        shape: shape of the weight.
        numel: number of its entries.
        num_zeros: entries that are zero.
        sparsity: ``num_zeros / numel``.
        macs: multiply-accumulates with it for one image; None without a profile.
        macs_kept: share of them whose weight is not zero, in [0, 1]; None without a profile.
        chosen: whether it was chosen to be pruned; None if that is not known.
        reason: the rule that chose it or left it out, if known.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    num_zeros: int
    sparsity: float
    macs: int | None
    macs_kept: float | None
    chosen: bool | None
    reason: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Zeros of a model; a weight that layers share counts once.

    Attributes:
        measured_sparsity: share of zeros in all conv and linear weights.
        measured_sparsity_chosen: the same over the chosen ones; None if they are not known.
        macs_kept: share of the multiply-accumulates whose weight is not zero; None without a profile.
        num_macs: multiply-accumulates of the dense model for one image; None without a profile.
        num_parameters: entries of all parameters of the model, biases and normalisation included.
        num_nonzero: those that are not zero.
        layers: one row for each conv and linear weight, in the order of the model.
    """

    measured_sparsity: float
    measured_sparsity_chosen: float | None
    macs_kept: float | None
    num_macs: int | None
    num_parameters: int
    num_nonzero: int
    layers: tuple[LayerMeasurement, ...]


@torch.no_grad()
def measure(
    model: nn.Module,
    chosen: Collection[str] | None = None,
    profile: Profile | None = None,
    reasons: dict[str, str] | None = None,
) -> Measurement:
    """Count the zeros of a model; of one that processes share (FSDP2), in all of them at once.

    Args:
        model: any module; nothing in it changes.
        chosen: full names of the weights that were to be pruned.
        profile: MACs of the weights, from `sparsedet.sparsity.profile.profile_model`.
        reasons: by full name, why a weight was chosen or left out.

    Raises:
        ConfigError: a parameter has no values (meta device), `chosen` or `profile` are of other weights, or see
            `find_weights`.
    """
    parameters = dict(unwrap(model).named_parameters())
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ConfigError(
                f"model: expected parameters with values, got '{name}' on the meta device. Move the model to a device."
            )
    layers = []
    weights = find_weights(model)
    names = {weight.name for weight in weights}
    if unknown := ({*(chosen or ())} - names) | (names ^ profile.num_macs.keys() if profile else set()):
        raise ConfigError(
            f"model: expected the weights of the model that was pruned, got another one, by '{min(unknown)}'. "
            "Pass a copy of that model, and not an object around it that adds to the names."
        )
    for weight in weights:
        numel = weight.tensor.numel()
        num_zeros = numel - int(torch.count_nonzero(whole(weight.tensor)))
        sparsity = num_zeros / max(numel, 1)
        layers.append(
            LayerMeasurement(
                name=weight.name,
                shape=tuple(weight.tensor.shape),
                numel=numel,
                num_zeros=num_zeros,
                sparsity=sparsity,
                macs=None if profile is None else profile.num_macs[weight.name],
                macs_kept=None if profile is None else 1 - sparsity,
                chosen=None if chosen is None else weight.name in chosen,
                reason=(reasons or {}).get(weight.name),
            )
        )
    num_macs = sum(layer.macs or 0 for layer in layers)
    macs_kept = sum((layer.macs or 0) * (1 - layer.sparsity) for layer in layers) / max(num_macs, 1)
    return Measurement(
        measured_sparsity=_sparsity(layers),
        measured_sparsity_chosen=None if chosen is None else _sparsity([layer for layer in layers if layer.chosen]),
        macs_kept=None if profile is None else macs_kept,
        num_macs=None if profile is None else num_macs,
        num_parameters=sum(parameter.numel() for parameter in parameters.values()),
        num_nonzero=sum(int(torch.count_nonzero(whole(parameter))) for parameter in parameters.values()),
        layers=tuple(layers),
    )


def _sparsity(layers: Collection[LayerMeasurement]) -> float:
    return sum(layer.num_zeros for layer in layers) / max(sum(layer.numel for layer in layers), 1)
