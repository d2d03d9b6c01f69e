"""What zeros an ONNX file holds, and whether they are all those of the model: found by content, not by name.

Exporting renames weights, multiplies each output channel by a number (batch norms that are folded), copies a weight
for each use or keeps one copy of equal ones, and transposes linear layers. None of this moves a zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsedet.common.errors import CheckpointError
from sparsedet.export.counting import TensorCount, count_tensor
from sparsedet.export.onnx_file import read_onnx
from sparsedet.export.onnx_weights import StoredWeight, by_output, other_tensors, stored_weights

Array = NDArray[Any]

SAMPLE = 8  # output channels compared first
PRECISIONS = {
    "float64": (2**-52, 0.0),
    "float32": (2**-23, 1e-45),
    "float16": (2**-10, 6e-8),
    "bfloat16": (2**-7, 1e-40),
}
"""Number formats of weights -> distance from 1 to the next number, smallest number above 0."""


@dataclass(frozen=True)
class FoundWeight:
    """Where a weight of the model is in the file.

    Attributes:
        name: full parameter name in the model.
        copies: names of the tensors in the file; empty if it is not there.
        num_zeros: zeros of the weight in the model.
        num_lost: zeros of it that are none in the file, in the worst copy.
        num_extra: zeros that only the file has, in the copy with most: too small for its number format, or in an
            output channel that is zero there.
        num_dead: output channels that are zero only in the file, in the copy with most. A batch norm that multiplies
            a channel by zero makes such a one, and so does damage: outputs tell.
    """

    name: str
    copies: tuple[str, ...]
    num_zeros: int
    num_lost: int
    num_extra: int
    num_dead: int


@dataclass(frozen=True)
class OnnxAudit:
    """Zeros of an ONNX file.

    Attributes:
        tensors: the weights of its convolutions, linear layers and products with a constant, each as a weight of the
            layer it came from: (out, in/groups, *kernel).
        distinct: those of them that are no copies of one before, but for one factor per output channel: a layer that
            is used several times may have one for each use.
        weights: those of the model it was compared with; empty without one.
        faults: what is not as in the model; empty when all holds.
        others: names of large tensors of floats that no such layer reads as they are, and that are not counted.
    """

    tensors: tuple[TensorCount, ...]
    distinct: tuple[TensorCount, ...]
    weights: tuple[FoundWeight, ...] = ()
    faults: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def measured_sparsity(self) -> float:
        """Share of zeros over all weights in the file, copies counted once."""
        return sum(tensor.num_zeros for tensor in self.distinct) / max(sum(t.numel for t in self.distinct), 1)


def audit_onnx(path: Path, expected: Mapping[str, Tensor] | None = None) -> OnnxAudit:
    """Count the zeros of an ONNX file, and look in it for the weights of a model.

    Args:
        path: the file.
        expected: weights of the model by name, shape (out, in/groups, *kernel), pruned entries 0; transposed
            convolutions as they are, (in, out/groups, *kernel).

    Raises:
        CheckpointError: the file cannot be read, see `read_onnx`, or is quantised in another way than by
            DequantizeLinear.
        MissingExtraError: onnx is not installed.
    """
    return audit_graph(path, read_onnx(path).graph, expected)


def audit_graph(path: Path, graph: Any, expected: Mapping[str, Tensor] | None = None) -> OnnxAudit:
    """Do what `audit_onnx` does with the graph of a file that was read already."""
    try:
        stored = stored_weights(path, graph)
        tensors = tuple(count_tensor(weight.name, torch.from_numpy(weight.rows)) for weight in stored)
    except (ValueError, IndexError, TypeError) as error:  # attributes that do not fit the shapes
        raise CheckpointError(f"{path}: expected a valid ONNX graph, got '{error}'. Export it again.") from error
    distinct = tuple(tensors[index] for index in _distinct(stored))
    others = other_tensors(graph, {weight.name for weight in stored})
    if expected is None:
        return OnnxAudit(tensors, distinct, others=others)
    found, faults = _find_all({name: _array(weight) for name, weight in expected.items()}, stored)
    return OnnxAudit(tensors, distinct, found, faults, others)


def _array(weight: Tensor) -> Array:
    weight = weight.detach().cpu()
    return np.asarray(weight.numpy() if weight.dtype == torch.float64 else weight.float().numpy())


@dataclass(frozen=True)
class _Fit:
    """How a weight in the file differs from one that it is but for one factor per output channel."""

    num_lost: int
    num_extra: int
    num_dead: int


def _find_all(
    wanted: dict[str, Array], stored: Sequence[StoredWeight]
) -> tuple[tuple[FoundWeight, ...], tuple[str, ...]]:
    """Return where each wanted weight is, and what is wrong."""
    found: dict[str, dict[str, _Fit]] = {name: {} for name in wanted}
    faults = []
    for weight in stored:
        fits = {name: fit for name, values in wanted.items() if (fit := _fit(values, weight)) is not None}
        if fits:
            best = min(fits, key=lambda name: fits[name].num_lost + fits[name].num_extra)
            found[best][weight.name] = fits[best]
        elif any(values.shape == weight.values.shape for values in wanted.values()):
            faults.append(
                f"{weight.name}: expected a weight of the model, as its shape {list(weight.values.shape)} says, "
                "got other values"
            )
    for name, copies in found.items():  # equal weights may have become one
        if not copies:
            fits_of = {weight.name: fit for weight in stored if (fit := _fit(wanted[name], weight)) is not None}
            copies.update({copy: fit for copy, fit in fits_of.items() if fit.num_lost == 0})
    weights = tuple(
        FoundWeight(
            name,
            tuple(copies),
            int((wanted[name] == 0).sum()),
            max((fit.num_lost for fit in copies.values()), default=0),
            max((fit.num_extra for fit in copies.values()), default=0),
            max((fit.num_dead for fit in copies.values()), default=0),
        )
        for name, copies in found.items()
    )
    faults += [
        f"{weight.name}: expected it in the file, got no tensor like it" for weight in weights if not weight.copies
    ]
    faults += [
        f"{name}: expected zeros where the model has them, got other values at {fit.num_lost} places of '{copy}'"
        for name, copies in found.items()
        for copy, fit in copies.items()
        if fit.num_lost
    ]
    return weights, tuple(faults)


def _fit(expected: Array, weight: StoredWeight) -> _Fit | None:
    """Compare a stored weight with `expected`, from which it may differ by one factor per output channel.

    None: it is another weight. What stands at zeros of `expected` does not decide that.
    """
    if expected.shape != weight.values.shape or not expected.size:
        return None
    rows, values = (array.reshape(len(array), -1) for array in (by_output(expected, weight.groups), weight.rows))
    some = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)
    steps = np.zeros((len(rows), 1)) if weight.step_rows is None else weight.step_rows.reshape(values.shape)
    for part in (some, slice(None)):
        if not _is_scaled(rows[part], values[part], weight.dtype, steps[part]):
            return None
    is_dead = (rows != 0).any(axis=1) & (values == 0).all(axis=1)
    is_zero, is_zero_there = rows == 0, values == 0
    return _Fit(
        int((is_zero & ~is_zero_there).sum()), int((~is_zero & is_zero_there).sum()), int(np.count_nonzero(is_dead))
    )


def _is_scaled(rows: Array, values: Array, dtype: str, steps: Array) -> bool:
    """Tell whether each row of `values` is a multiple of that of `rows`, where `rows` is not zero."""
    rows, values = rows.astype(np.float64), np.where(rows == 0, 0.0, values)
    squares = (rows * rows).sum(axis=1)
    factors = (rows * values).sum(axis=1) / np.where(squares == 0, 1.0, squares)
    scaled = rows * factors[:, None]
    relative, smallest = PRECISIONS[dtype]
    tolerance = 2 * relative * np.abs(scaled).max(axis=1, keepdims=True) + smallest + steps
    return bool((np.abs(values - scaled) <= tolerance).all())


def _distinct(stored: Sequence[StoredWeight]) -> list[int]:
    """Return the places of the weights that are no scaled copies of one before.

    A layer that is used several times, such as a head on every level of a pyramid, may have one in the file for each.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, weight in enumerate(stored):
        before = by_shape.setdefault(weight.values.shape, [])
        if not any(_is_copy(weight, stored[other]) for other in before):
            before.append(index)
    return sorted(index for indices in by_shape.values() for index in indices)


def _is_copy(one: StoredWeight, other: StoredWeight) -> bool:
    if one.groups != other.groups or not (_tells_apart(one) and _tells_apart(other)):
        return False
    fits = (_fit(one.values, other), _fit(other.values, one))  # the coarser number format decides
    return any(fit is not None and fit.num_lost == 0 for fit in fits)


def _tells_apart(weight: StoredWeight) -> bool:
    """Whether a factor for each output channel leaves something that tells the weight from others."""
    num_nonzero = np.count_nonzero(weight.rows.reshape(len(weight.rows), -1), axis=1)
    return bool((num_nonzero > 1).any())
