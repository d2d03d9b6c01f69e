"""Running an ONNX file in onnxruntime, to compare what it computes with the module it came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsedet.common.errors import CheckpointError
from sparsedet.export.onnx_file import require_onnx


class OnnxRunner:
    """An ONNX file on the CPU.

    Args:
        path: the file, of one's own making or seen by `read_onnx`.

    Raises:
        CheckpointError: onnxruntime cannot run it.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        runtime = require_onnx("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised as well
        self.path = path
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own kinds, which derive from Exception
            raise self._refusal(error) from error

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return tuple(entry.name for entry in self._session.get_inputs())

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name for `inputs` in order.

        Raises:
            CheckpointError: it fails on these inputs.
        """
        feed = {name: tensor.numpy() for name, tensor in zip(self.input_names, inputs, strict=True)}
        names = [entry.name for entry in self._session.get_outputs()]
        try:
            outputs = self._session.run(names, feed)
        except Exception as error:
            raise self._refusal(error) from error
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    def _refusal(self, error: Exception) -> CheckpointError:
        reason = " ".join(str(error).split())
        return CheckpointError(f"{self.path}: expected a graph that onnxruntime runs, got '{reason}'. Export it again.")


def relative_difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for each output the largest difference divided by the largest absolute value expected in it.

    An output of another shape, or with values that are not finite where they should be, has the difference inf.
    """
    return {name: _difference(value.double(), actual[name].double()) for name, value in expected.items()}


def _difference(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    largest = (expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12)
    return float(largest.nan_to_num(nan=float("inf")))
