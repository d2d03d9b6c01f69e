"""ERK allocation against the numbers that MSBench's own code produced."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sparsedet.sparsity import Erk
from sparsedet.sparsity.allocation.selection import ScoredTensor, select_counts


def scored_tensor(name, shape):
    scores = np.random.default_rng(0).random(np.prod(shape), dtype=np.float32)
    return ScoredTensor(name, shape, lambda: scores)


@pytest.fixture(scope="module")
def scored():
    def make(arch):
        with torch.device("meta"):  # ERK looks at shapes only; any scores do
            model = getattr(torchvision.models, arch)()
        return [
            scored_tensor(name, tuple(module.weight.shape))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]

    return {arch: make(arch) for arch in ("resnet18", "resnet50")}


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_densities_are_msbench_s(arch, sparsity, scored, golden):
    """MSBench uses power 0.5 and keeps ``sum(n - floor(s * n))`` weights; we keep ``N - round(s * N)``."""
    expected = golden("erk.json")[f"{arch}@{sparsity}"]
    tensors = scored[arch]
    sizes = {tensor.summary.name: int(np.prod(tensor.summary.shape)) for tensor in tensors}
    target = round(sparsity * sum(sizes.values()))
    (counts,) = select_counts(Erk(power=0.5), tensors, [target])
    allocated = dict(zip(sizes, counts, strict=True))
    assert sum(counts) == target
    assert [name for name, count in allocated.items() if count == 0] == expected["dense_layers"]
    for name, count in allocated.items():
        # the difference in the total moves eps by about 1e-6, each count is a whole number
        assert count / sizes[name] == pytest.approx(expected["per_layer"][name], abs=2e-6 + 0.6 / sizes[name])


def test_default_power_is_one():
    # densities min(1, eps * (sum(shape) / n)): n = 8, 32 with factors 6/8, 12/32; 20 kept = eps * (6 + 12)
    tensors = [scored_tensor("", shape) for shape in ((4, 2), (8, 4))]
    assert Erk().power == 1
    assert select_counts(Erk(), tensors, [20, 22]) == [[1, 19], [2, 20]]
