"""How other tools prune all convolutions and linear layers of a model, to compare with.

MSBench itself does not run on a current PyTorch. Its rules are written anew here from a description of what they
do: a new mask on every forward pass, by the k-th smallest magnitude of a layer (its `NormalMaskGenerator`) or by
sorting groups of four input channels (its `NMMaskGenerator`), and the effective weight is weight x mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier
from torch.nn.utils import parametrize, prune

SPARSITY = 0.5

Rule = Callable[[Tensor], Tensor]
"""Weight -> mask, True = keep."""


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return the layers that are pruned."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def top_k_mask(weight: Tensor) -> Tensor:
    """Mask as MSBench's `NormalMaskGenerator`: the largest of the k smallest magnitudes is the threshold."""
    scores = weight.abs()
    k = scores.numel() - int((1 - SPARSITY) * scores.numel())
    return scores > scores.flatten().topk(k, largest=False).values.max()


def kthvalue_mask(weight: Tensor) -> Tensor:
    """Mask by the threshold that `torch.kthvalue` finds; what ties with it goes too."""
    scores = weight.abs()
    return scores > scores.flatten().kthvalue(int(SPARSITY * scores.numel())).values


def argsort_mask(weight: Tensor) -> Tensor:
    """Mask as MSBench's `NMMaskGenerator`: two of four input channels by sorting; dense where four do not divide."""
    if weight.shape[1] % 4:
        return torch.ones_like(weight, dtype=torch.bool)
    channels_last = weight.movedim(1, -1)
    smallest = channels_last.abs().reshape(-1, 4).argsort(dim=1)[:, :2]
    mask = torch.ones(smallest.shape[0], 4, dtype=torch.bool).scatter_(1, smallest, False)
    return mask.view(channels_last.shape).movedim(-1, 1)


@torch.no_grad()
def prune_by(rule: Rule, model: nn.Module) -> None:
    """Multiply every weight by its mask."""
    for layer in layers(model):
        layer.weight.mul_(rule(layer.weight))


class _MaskOnForward(nn.Module):
    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            mask = self.rule(weight)
        return weight * mask


def msbench(model: nn.Module) -> None:
    """Make `model` compute with weight x mask, the mask made anew on every forward pass."""
    for layer in layers(model):
        parametrize.register_parametrization(layer, "weight", _MaskOnForward(top_k_mask))


def torch_prune(model: nn.Module) -> None:
    """Prune by ``torch.nn.utils.prune``: a hook before each forward pass multiplies by a mask that is kept."""
    for layer in layers(model):
        scores = layer.weight.detach().contiguous()  # it fails at weights whose channels are last
        prune.l1_unstructured(layer, "weight", SPARSITY, importance_scores=scores)


def torch_prune_global(model: nn.Module) -> None:
    """Prune all layers by one threshold, by ``torch.nn.utils.prune``."""
    parameters = [(layer, "weight") for layer in layers(model)]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=SPARSITY)


class _AoSparsifier(BaseSparsifier):
    """The sparsifiers that ``torch.ao.pruning`` ships fail at convolutions of 7 x 7; this one gives its masks."""

    def update_mask(self, module: nn.Module, tensor_name: str, **_: object) -> None:
        mask = module.parametrizations[tensor_name][0].mask
        mask.data = top_k_mask(getattr(module, tensor_name)).float()


def torch_ao(model: nn.Module) -> None:
    """Prune by ``torch.ao.pruning``: a parametrization multiplies by a mask that is kept."""
    wanted = set(layers(model))
    names = [{"tensor_fqn": f"{name}.weight"} for name, module in model.named_modules() if module in wanted]
    sparsifier = _AoSparsifier()
    sparsifier.prepare(model, names)
    sparsifier.step()
