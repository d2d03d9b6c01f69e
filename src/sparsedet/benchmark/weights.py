"""Filling a detector with the weights of a checkpoint, and what became of each of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsedet.common.errors import CheckpointError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights.

    Attributes:
        loaded: entries of the detector that were filled.
        missing: entries the checkpoint does not have.
        reinitialised: entries the checkpoint has in another shape.
        unexpected: entries of the checkpoint that the detector does not have.
        missing_share: share of the detector's values that are missing or reinitialised, in [0, 1].
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unexpected: tuple[str, ...]
    missing_share: float

    def lines(self) -> Iterator[str]:
        """Yield one line of counts, then one for each kind of entry that was not simply loaded."""
        kinds = {"missing": self.missing, "reinitialised": self.reinitialised, "unexpected": self.unexpected}
        counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in {"loaded": self.loaded, **kinds}.items())
        yield f"{counts} ({self.missing_share:.2%} of the values keep their fresh initialisation)"
        for kind, keys in kinds.items():
            if keys:
                yield f"{kind}: {_first(keys)}"


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, max_missing: float | None = None
) -> LoadReport:
    """Copy `state` into `model` by name and shape; all of it or nothing.

    Args:
        model: detector; what is missing in `state`, or has another shape there, keeps its values.
        state: values by the detector's own names.
        path: where they come from, for messages.
        max_missing: share of the detector's values that may be left out; None: both must have the same entries.

    Raises:
        CheckpointError: more would be left out, or a value is not finite.
    """
    own = model.state_dict()
    report = check_fit(own, state, path, max_missing)
    fitting = {key: state[key] for key in report.loaded}
    for key, value in fitting.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path}: expected finite weights, got NaN or infinity in '{key}'. Use an earlier checkpoint."
            )
    model.load_state_dict(fitting, strict=False)
    return report


def check_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, max_missing: float | None = None
) -> LoadReport:
    """Hold the values in `state` against `own`, those of a detector, without copying any; see `load_state`.

    Raises:
        CheckpointError: more would be left out, or a value is of another kind of number.
    """
    missing = tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked"))
    reinitialised = tuple(key for key in own if key in state and state[key].shape != own[key].shape)
    unexpected = tuple(key for key in state if key not in own)
    fresh = sum(own[key].numel() for key in (*missing, *reinitialised))
    share = fresh / sum(value.numel() for value in own.values())
    if share > (max_missing or 0) or (max_missing is None and unexpected):
        faults = [
            *_other_classes(own, state),
            *(f"'{key}' is missing" for key in missing),
            *(f"'{key}' is not part of it" for key in unexpected if max_missing is None),
            *(
                f"'{key}' has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in reinitialised
            ),
        ]
        enough = math.ceil(share * 1e4) / 1e4
        remedy = "" if max_missing is None else f"; or set max_missing to {enough} or more to start afresh there"
        raise CheckpointError(
            f"{path}: expected the weights of this detector, got another model's: {_first(faults, '; ')}. "
            f"Use the recipe and the classes it was trained with, or another checkpoint{remedy}."
        )
    fitting = tuple(key for key in own if key in state and key not in reinitialised)
    for key in fitting:
        value = state[key]
        is_whole = not (value.is_floating_point() or value.is_complex())
        if not (value.dtype in FLOATS if own[key].is_floating_point() else is_whole):
            raise CheckpointError(
                f"{path}: expected numbers like {own[key].dtype} in '{key}', got {value.dtype}. Use another checkpoint."
            )
    return LoadReport(fitting, missing, reinitialised, unexpected, share)


def _other_classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the fault that the class predictor in `state` is for another number of classes, if it is."""
    there, here = _num_classes(state), _num_classes(own)
    if there is not None and here is not None and there != here:
        predictor = "box_head.cls_pred" if "box_head.cls_pred.bias" in own else "head.cls_pred"
        yield f"'{predictor}' is for {there} classes instead of {here}"


def _num_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that the predictors of a detector are for; None without predictors."""
    if "box_head.cls_pred.bias" in state:
        return state["box_head.cls_pred.bias"].numel() - 1  # one is background
    if not {"head.cls_pred.bias", "head.box_pred.bias"} <= state.keys():
        return None
    num_anchors = state["head.box_pred.bias"].numel() // 4
    return state["head.cls_pred.bias"].numel() // max(num_anchors, 1)


def _first(texts: Sequence[str], joint: str = ", ") -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return joint.join(texts[:3]) + more
