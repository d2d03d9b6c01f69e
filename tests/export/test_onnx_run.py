import math

import pytest
import torch

from sparsedet.common.errors import CheckpointError
from sparsedet.export.onnx_run import OnnxRunner, relative_difference

pytest.importorskip("onnxruntime")


def test_relative_difference():
    expected = {"a": torch.tensor([2.0, -4.0]), "b": torch.zeros(2), "c": torch.zeros(0), "d": torch.ones(2)}
    actual = {
        "a": torch.tensor([2.0, -3.0]),
        "b": torch.zeros(2),
        "c": torch.zeros(0),
        "d": torch.tensor([1.0, math.nan]),
    }
    assert relative_difference(expected, actual) == {"a": 0.25, "b": 0.0, "c": 0.0, "d": math.inf}
    assert relative_difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)}) == {"a": math.inf}


def test_a_file_that_does_not_run_is_one_message(tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged\.onnx: expected a graph that onnxruntime runs, got"):
        OnnxRunner(path)
