"""The package on its own: no torchvision, no side effects, examples that run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsedet.sparsity

WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None  # any import of it fails
import torch
from torch import nn
from sparsedet.sparsity import LevelWise, Sparsifier, SparsityConfig
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
config = SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9)), input_shape=(1, 3, 8, 8))
sparsifier = Sparsifier(model, config)
sparsifier.attach(optimizer)
for step in range(4):
    sparsifier.before_step(step, 4)
    optimizer.zero_grad()
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
print(round(sparsifier.measure().measured_sparsity, 3))
print(sorted(name for name in sys.modules if name.startswith("sparsedet.")))
"""


def test_works_where_torchvision_cannot_be_imported():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("0.9\n")
    assert "sparsedet.detection" not in result.stdout


MODULES = [module.name for module in pkgutil.walk_packages(sparsedet.sparsity.__path__, "sparsedet.sparsity.")]


@pytest.mark.parametrize("name", ["sparsedet.sparsity", *MODULES])
def test_examples_in_docstrings_run(name):
    torch.manual_seed(0)
    module = importlib.import_module(name)
    names = {public: getattr(sparsedet.sparsity, public) for public in sparsedet.sparsity.__all__}
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn, **names})
    assert result.failed == 0
    assert result.attempted > 0 or name not in (
        "sparsedet.sparsity.sparsifier",
        "sparsedet.sparsity.patterns.n_m",
    )


def test_every_public_name_is_documented():
    for name in sparsedet.sparsity.__all__:
        value = getattr(sparsedet.sparsity, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name
