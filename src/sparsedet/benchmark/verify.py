"""Whether a file holds the zeros it claims: counted in its weights, held against masks and pattern."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.benchmark.checkpoint import SavedDetector, open_checkpoint, open_content
from sparsedet.benchmark.compact import read_any
from sparsedet.benchmark.onnx_export import expected_weights
from sparsedet.benchmark.upstream.checkpoint import state_dict_of
from sparsedet.common.checkpoint import is_sparsedet
from sparsedet.common.document import parse_json
from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.export.counting import TensorCount, count_tensor
from sparsedet.export.onnx_audit import OnnxAudit, audit_graph, audit_onnx
from sparsedet.export.onnx_file import SUFFIX as ONNX_SUFFIX
from sparsedet.export.onnx_file import read_onnx
from sparsedet.export.tensorrt import Readiness, assess, input_shapes, onnx_groups, trtexec_command
from sparsedet.sparsity import check_n_m
from sparsedet.sparsity.weights import find_weights

MAX_SIDECAR_BYTES = 2**24
MAX_NAMES = 5


@dataclass(frozen=True)
class Verification:
    """What was counted.

    Attributes:
        file: the file.
        sparsity: zeros over all conv/linear weights; in files of other programs over all tensors of two and more
            dimensions. In an ONNX file copies of a weight, one for each use, count once.
        sparsity_chosen: zeros over the pruned ones; None where there are none or the file does not say it.
        target_sparsity: what was asked for; None where there is nothing or the file does not say it.
        layers: one row for each weight; `agrees_with_mask` is None where there is no mask to compare with.
        faults: what is not as the file says, or as the masks compared with say; empty when all holds.
        compared_with: what the weights were held against, in words.
        notes: what is no fault but worth a look.
    """

    file: str
    sparsity: float
    sparsity_chosen: float | None
    target_sparsity: float | None
    layers: list[dict[str, Any]]
    faults: tuple[str, ...]
    compared_with: str | None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that say the result."""
        asked = "" if self.target_sparsity is None else f"asked {self.target_sparsity:.2%}; "
        chosen = "" if self.sparsity_chosen is None else f", {self.sparsity_chosen:.4%} over the pruned ones"
        counted = (
            f"{asked}zeros counted: {self.sparsity:.4%} over all weights{chosen}",
            *(f"note: {note}" for note in self.notes),
        )
        if self.faults:
            return *counted, *(f"fault: {fault}" for fault in self.faults)
        if self.compared_with is None:
            return (
                *counted,
                "the file holds no masks to compare with; --against CHECKPOINT compares it with those there",
            )
        return *counted, f"verified: the weights are what {self.compared_with} says"


@dataclass(frozen=True)
class _Content:
    """The weights of a file, shape (O, I/groups, *kernel), with what is known of them."""

    weights: dict[str, Tensor]
    groups: dict[str, int | None]
    saved: SavedDetector | None = None

    @property
    def counts(self) -> tuple[TensorCount, ...]:
        return tuple(count_tensor(name, weight) for name, weight in self.weights.items())


def verify_file(path: Path, against: Path | None = None) -> Verification:
    """Count the zeros of a file and hold them against its own masks, target and pattern, or those of a checkpoint.

    Args:
        path: checkpoint, compact file, state dict or safetensors of any program, or ONNX file.
        against: checkpoint whose masks the weights must have. The weight of a mask is the one of its name or, where
            there is none, any of its shape that has zeros where the mask prunes; in an ONNX file it is found by
            content, see `audit_onnx`.

    Raises:
        CheckpointError: a file cannot be read, or `against` has no masks.
        MissingExtraError: it is an ONNX file and onnx is not installed.
    """
    original = None if against is None else _open_pruned(against)
    if path.suffix == ONNX_SUFFIX:
        return _verify_onnx(path, original)
    content = _read(path)
    saved, counts = content.saved, content.counts
    agrees: dict[str, bool] = {}
    faults: list[str] = []
    if saved is not None:
        agrees, faults = _hold_against(saved.masks, content.weights, is_exact=True)
        faults += _own_faults(saved, counts)
    if original is not None:
        agrees, found = _hold_against(original.masks, content.weights, is_exact=False)
        faults += found
    return _verification(path, counts, agrees, faults, saved, original)


def _verification(
    path: Path,
    counts: Sequence[TensorCount],
    agrees: dict[str, bool],
    faults: Sequence[str],
    saved: SavedDetector | None,
    original: SavedDetector | None,
    distinct: Sequence[TensorCount] | None = None,
    notes: Sequence[str] = (),
) -> Verification:
    """Put a result together; `distinct` are those of `counts` that the shares of zeros are over, default all."""
    distinct = counts if distinct is None else distinct
    pruned = [count for count in distinct if count.name in agrees]
    origin = saved or original
    return Verification(
        str(path),
        _sparsity(distinct),
        _sparsity(pruned) if pruned else None,
        origin.recipe.target_sparsities[origin.level] if origin is not None and origin.masks else None,
        [_row(count, agrees.get(count.name)) for count in counts],
        (*faults, *_values_faults(counts)),
        str(original.path) if original is not None else None if saved is None else "the file",
        tuple(notes),
    )


def _verify_onnx(path: Path, original: SavedDetector | None) -> Verification:
    audit = audit_onnx(path, None if original is None else expected_weights(original))
    _require_weights(path, audit)
    agrees = {copy: found.num_lost == 0 for found in audit.weights for copy in found.copies}
    notes = [
        f"{found.name}: {found.num_dead} output channels are zero in the file only, as a batch norm makes them that "
        "multiplies by zero; if there is none, the file is damaged"
        for found in audit.weights
        if found.num_dead
    ]
    if num_copies := len(audit.tensors) - len(audit.distinct):
        notes.append(f"{num_copies} of {len(audit.tensors)} tensors are copies of a weight, which is counted once")
    if audit.others:
        notes.append(
            f"{len(audit.others)} tensors are not counted, since no convolution, linear layer or product of matrices "
            f"reads them as they are: {', '.join(audit.others[:MAX_NAMES])}" + ("…" if audit.others[MAX_NAMES:] else "")
        )
    return _verification(path, audit.tensors, agrees, audit.faults, None, original, audit.distinct, notes)


def _require_weights(path: Path, audit: OnnxAudit) -> None:
    if not audit.tensors:
        raise CheckpointError(
            f"{path}: expected weights of convolutions, linear layers or products of matrices, got none. "
            "Check the path."
        )


def assess_file(path: Path) -> tuple[Readiness, ...]:
    """Say of each weight of a file what TensorRT can do with it.

    Args:
        path: as for `verify_file`.

    Raises:
        CheckpointError: the file cannot be read.
        MissingExtraError: it is an ONNX file and onnx is not installed.
    """
    if path.suffix == ONNX_SUFFIX:
        graph = read_onnx(path).graph
        audit = audit_graph(path, graph)
        _require_weights(path, audit)
        return assess(audit.tensors, onnx_groups(graph))
    content = _read(path)
    return assess(content.counts, content.groups)


def engine_command(path: Path) -> str:
    """Return the command that builds TensorRT's engine of an ONNX file, or of the one that a file is exported to.

    Inputs of any size get that of the JSON file that `sparsedet export` wrote beside it.

    Raises:
        CheckpointError: the file cannot be read.
        MissingExtraError: it is an ONNX file and onnx is not installed.
    """
    if path.suffix != ONNX_SUFFIX:
        return trtexec_command(path.with_suffix(ONNX_SUFFIX))
    return trtexec_command(path, input_shapes(read_onnx(path).graph, _image_shape(path.with_suffix(".json"))))


def _image_shape(sidecar: Path) -> tuple[int, ...] | None:
    """Return the shape of images that a JSON file of `sparsedet export` names; None if it is no such file."""
    try:
        with sidecar.open("rb") as stream:
            text = stream.read(MAX_SIDECAR_BYTES).decode()
        shape = parse_json(text, str(sidecar)).data["macs"]["input_shape"]
    except (OSError, UnicodeDecodeError, ConfigError, KeyError, TypeError):
        return None
    is_shape = isinstance(shape, list) and len(shape) == 4 and all(type(size) is int and size > 0 for size in shape)
    return tuple(shape) if is_shape else None


def _read(path: Path) -> _Content:
    content = read_any(path)
    if is_sparsedet(content):
        saved = open_content(content, path)
        found = find_weights(saved.model)
        weights = {weight.name: weight.tensor.detach() for weight in found}
        return _Content(weights, {weight.name: getattr(weight.layer, "groups", 1) for weight in found}, saved)
    state = state_dict_of(content, path)
    weights = {  # torch cannot count in floats of 8 bits, all of which are floats of 32 too
        name: value.float() if value.element_size() == 1 else value
        for name, value in state.items()
        if value.ndim >= 2 and value.is_floating_point()
    }
    if not weights:
        raise CheckpointError(f"{path}: expected weights of at least two dimensions, got none. Check the path.")
    return _Content(weights, {})


def _open_pruned(path: Path) -> SavedDetector:
    saved = open_checkpoint(path)
    if not saved.masks:
        raise CheckpointError(f"{path}: expected a checkpoint with masks, got a dense one. Give one of a pruned level.")
    return saved


def _hold_against(
    masks: dict[str, Tensor], weights: dict[str, Tensor], is_exact: bool
) -> tuple[dict[str, bool], list[str]]:
    """Compare weights with masks.

    Returns:
        By the name of each weight that belongs to a mask, whether they agree; and the faults.
    """
    agrees: dict[str, bool] = {}
    faults: list[str] = []
    for name, mask in masks.items():
        weight = weights.get(name)
        if weight is not None:
            fault = _mask_fault(name, weight, mask, is_exact)
            agrees[name] = fault is None
            faults += [] if fault is None else [fault]
            continue
        copies = [other for other, weight in weights.items() if _mask_fault(other, weight, mask, is_exact) is None]
        agrees |= dict.fromkeys(copies, True)
        if not copies:
            faults.append(
                f"{name}: expected a weight with its zeros, got none of shape {tuple(mask.shape)} that has them"
            )
    return agrees, faults


def _mask_fault(name: str, weight: Tensor, mask: Tensor, is_exact: bool) -> str | None:
    """Return where a weight is not zero (`is_exact`: not +0.0) though its mask prunes it; None where all is."""
    if weight.shape != mask.shape:
        return f"{name}: expected the shape {tuple(mask.shape)} of its mask, got {tuple(weight.shape)}"
    pruned = weight[~mask]
    is_wrong = pruned != 0
    if is_exact:
        is_wrong |= torch.signbit(pruned)
    wrong = int(is_wrong.sum())
    zero = "+0.0" if is_exact else "zero"
    return f"{name}: expected {zero} at {pruned.numel()} pruned places, got another value at {wrong}" if wrong else None


def _own_faults(saved: SavedDetector, counts: Sequence[TensorCount]) -> list[str]:
    """Return what is not as recipe and record of a checkpoint or compact file say."""
    sparsity = saved.recipe.sparsity
    if sparsity is None:
        return []
    if not saved.masks:
        return [f"masks: expected those of level {saved.level}, which its recipe prunes, got none"]
    faults = [
        f"{count.name}: expected at least {expected} zeros, got {count.num_zeros}"
        for count in counts
        if count.num_zeros < (expected := saved.num_pruned.get(count.name, 0))
    ]
    if sparsity.pattern.type in ("n_m", "n_m_2d"):
        faults += _pattern_faults(saved)
    elif sparsity.pattern.type == "unstructured" and sparsity.budget == "weights" and sparsity.compensate:
        faults += _count_faults(saved, counts)
    return faults


def _count_faults(saved: SavedDetector, counts: Sequence[TensorCount]) -> list[str]:
    assert saved.recipe.sparsity is not None
    counted = [count for count in counts if saved.recipe.sparsity.scope == "all" or count.name in saved.masks]
    expected = round(saved.recipe.target_sparsities[saved.level] * sum(count.numel for count in counted))
    pruned = sum(saved.num_pruned.values())
    return [f"masks: expected exactly {expected} pruned weights, got {pruned}"] if pruned != expected else []


def _pattern_faults(saved: SavedDetector) -> list[str]:
    assert saved.recipe.sparsity is not None
    pattern = saved.recipe.sparsity.pattern
    parameters = dict(saved.model.named_parameters())
    n, m = (pattern.n, pattern.m) if pattern.type == "n_m" else (2, 4)
    violations = {name: check_n_m(parameters[name].detach(), n, m) for name in saved.masks}
    if pattern.type == "n_m_2d":  # along output channels too
        for name in saved.masks:
            violations[name] += check_n_m(parameters[name].detach().transpose(0, 1), n, m)
    return [
        f"{name}: expected at most {n} of every {m} weights, got {count} groups with more"
        for name, count in violations.items()
        if count
    ]


def _values_faults(counts: Sequence[TensorCount]) -> list[str]:
    return [
        f"{count.name}: expected finite weights, got {count.num_not_finite} that are NaN or infinite"
        for count in counts
        if count.num_not_finite
    ]


def _sparsity(counts: Sequence[TensorCount]) -> float:
    return sum(count.num_zeros for count in counts) / max(sum(count.numel for count in counts), 1)


def _row(count: TensorCount, agrees: bool | None) -> dict[str, Any]:
    return {
        "name": count.name,
        "shape": list(count.shape),
        "num_weights": count.numel,
        "num_zeros": count.num_zeros,
        "sparsity": count.sparsity,
        "violations_of_2_4": count.n_m_violations,
        "dead_channels": count.num_dead_channels,
        "agrees_with_mask": agrees,
    }
