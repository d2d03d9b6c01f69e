"""Promises about the package as a whole."""

import ast
import subprocess
import sys
from pathlib import Path

import sparsedet
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.suite import load_suite

SOURCE = Path(sparsedet.__file__).parent
CONFIGS = SOURCE.parents[1] / "configs"

IMPORT_EVERYTHING = """
import logging, pkgutil, socket, sys, threading
import torch
import sparsedet

def refuse(*args, **kwargs):
    raise AssertionError("network at import")

socket.socket.connect = refuse
torch.manual_seed(1)
state = torch.get_rng_state()
for module in pkgutil.walk_packages(sparsedet.__path__, "sparsedet."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
assert torch.equal(torch.get_rng_state(), state)
assert not logging.getLogger().handlers and not logging.getLogger("sparsedet").handlers
assert threading.active_count() == 1
assert "matplotlib.pyplot" not in sys.modules
assert float(torch.tensor([1e-42]) * 1.0) != 0.0, "denormals flushed at import"
"""


def test_importing_any_part_has_no_side_effect(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_has_a_docstring():
    missing = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module) and not ast.get_docstring(node):
                missing.append(str(path))
    assert missing == []


def test_files_stay_small():
    assert [path.name for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 400] == []


def test_every_shipped_recipe_and_suite_loads(tmp_path):
    for path in CONFIGS.glob("*.yaml"):
        load_recipe(path, (f"data.root={tmp_path}",))
    for path in CONFIGS.glob("suites/*.yaml"):
        load_suite(path, (f"data.root={tmp_path}",))
