"""Golden values of United-Perception's own code, and the weights they were made with."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Any:
    """A function: file name in tests/detection/models/golden -> its content."""

    def read(name: str) -> Any:
        path = GOLDEN / name
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return runpy.run_path(str(path)) if path.suffix == ".py" else json.loads(path.read_text())

    return read
