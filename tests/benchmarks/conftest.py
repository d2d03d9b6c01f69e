import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def run(load, capsys):
    """Run a benchmark by its name with arguments; return its table (lines) and its results."""
    num_threads = torch.get_num_threads()

    def run_it(name, *arguments):
        load(name).main(arguments)
        *table, last = capsys.readouterr().out.splitlines()
        return table, json.loads(last)["results"]

    yield run_it
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(False)
