"""Global allocation: one threshold over all tensors."""

import torch

from sparsedet.sparsity import Global, OneShot, Sparsifier, SparsityConfig


def test_every_pruned_weight_is_smaller_than_every_kept_one(bag):
    torch.manual_seed(0)
    model = bag(a=torch.nn.Linear(30, 20), b=torch.nn.Linear(20, 40), c=torch.nn.Conv2d(3, 8, 3))
    weights = {f"{name}.weight": module.weight.detach().clone().abs() for name, module in model.named_children()}
    sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.6), allocation=Global()))
    sparsifier.prune_(0)
    pruned = torch.cat([weights[name][~mask] for name, mask in sparsifier.masks.items()])
    kept = torch.cat([weights[name][mask] for name, mask in sparsifier.masks.items()])
    assert len(pruned) == round(0.6 * (600 + 800 + 216))
    assert pruned.max() < kept.min()
