"""One line of `records.jsonl`: what one trained and evaluated level of one experiment gave."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsedet.common.config import ConfigModel, validate
from sparsedet.common.document import parse_json
from sparsedet.common.errors import ConfigError, StorageError

RECORDS_FILE = "records.jsonl"

MAX_NAME_LENGTH = 200  # file systems take 255 bytes

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_LENGTH)]
Difference = Annotated[float, Field(ge=-1, le=1)]


class Record(ConfigModel):
    """The result of one level (or of a dense training), with all that is needed to know where it came from.

    Attributes:
        experiment: name of the experiment, which is also the name of its folder.
        family: heading of the result table it belongs to, such as "high-accuracy baselines".
        label: row of that table: the network with its configuration in brackets.
        scheduler: "dense", "level_wise", "one_shot" … (type of the schedule).
        pattern: "none" (dense), "unstructured", or "2:4" and other N:M.
        allocation: type of the allocation, None where there is nothing to allocate.
        budget: what the target is a share of: zeros among the weights, or multiply-accumulates that fall away.
        level: 0-based index, None for dense.
        target_sparsity: what was asked for.
        allocated_sparsity: what the masks hold.
        measured_sparsity: zeros counted in all conv/linear weights.
        measured_sparsity_chosen: zeros counted in the weights that were chosen for pruning.
        macs_kept: share of the dense MACs whose weight is not zero.
        num_macs: MACs of the dense network for one image.
        num_parameters: conv/linear weights and all other parameters.
        num_nonzero: those of them that are not zero.
        size_bytes_dense: bytes of the weights and buffers as they are; None in records of older versions.
        size_bytes_sparse: bytes of the compact file that gives back the same bits; None in records of older versions.
        ap_interval: (low, high), 95 % confidence interval of AP by bootstrap over the images; None where AP is
            undefined, and in records of older versions.
        ap_drop_interval: likewise for AP of the dense detector minus this one's, on the same resamples; None where
            there was no dense detector on the same data.
        ap_after_pruning: AP right after the masks were made, before any training with them.
        ap_after_reestimation: AP after that, with statistics of batch norms estimated anew; None where they were not.
        best_ap: AP of ``best.pt``, the best of those measured in the level at its sparsity; None where it was not kept.
        best_step: optimizer updates of the run before it was measured; None likewise.
        metrics: the 12 COCO numbers in [0, 1] by the names `ap`, `ap50` …; -1 where COCO defines none.
        loss: mean training loss of the last logged steps; None where it is not finite or nothing was trained.
        steps: optimizer updates of this level.
        seconds: wall time of this level, training and evaluation.
        published_ap: AP that the recipe states as published, in [0, 1].
        initial_weights: "from scratch", a file, or torchvision's name.
        environment: versions, device, threads.
        folder: folder of the level, relative to the experiment's.
    """

    format_version: Literal[1] = 1
    experiment: FolderName
    family: str
    label: str
    scheduler: str
    pattern: str
    allocation: str | None = None
    level: Count | None = None
    num_levels: Count
    budget: Literal["weights", "macs"] = "weights"
    target_sparsity: Share | None = None
    allocated_sparsity: Share | None = None
    measured_sparsity: Share
    measured_sparsity_chosen: Share | None = None
    macs_kept: Share
    num_macs: Count
    num_parameters: Count
    num_nonzero: Count
    size_bytes_dense: Count | None = None
    size_bytes_sparse: Count | None = None
    ap_interval: tuple[Share, Share] | None = None
    ap_drop_interval: tuple[Difference, Difference] | None = None
    ap_after_pruning: Annotated[float, Field(ge=-1, le=1)] | None = None
    ap_after_reestimation: Annotated[float, Field(ge=-1, le=1)] | None = None
    best_ap: Annotated[float, Field(ge=-1, le=1)] | None = None
    best_step: Count | None = None
    metrics: dict[str, Annotated[float, Field(ge=-1, le=1)]]
    loss: float | None = None
    steps: Count
    seconds: Annotated[float, Field(ge=0)]
    seed: int
    published_ap: Share | None = None
    initial_weights: str
    environment: dict[str, str | int | float | bool | None]
    config_hash: str
    data_hash: str
    folder: FolderName

    @field_validator("metrics")
    @classmethod
    def _has_ap(cls, metrics: dict[str, float]) -> dict[str, float]:
        if "ap" not in metrics:
            raise ValueError(f"expected the COCO metrics with 'ap', got {sorted(metrics)}. Add 'ap'.")
        return metrics

    @property
    def is_dense(self) -> bool:
        """Whether nothing was pruned."""
        return self.scheduler == "dense"

    @property
    def is_n_m(self) -> bool:
        """Whether the pattern is N:M."""
        return ":" in self.pattern

    @property
    def asked_sparsity(self) -> float | None:
        """The target or, where none is given, the share of zeros that N:M stands for; None for dense."""
        match = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        if self.target_sparsity is None and match:
            return 1 - int(match[1]) / int(match[2])
        return self.target_sparsity

    @property
    def ap(self) -> float:
        """COCO AP in [0, 1]; -1 where the data has no boxes."""
        return self.metrics["ap"]


def read_records(experiment_dir: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read the records of an experiment; an experiment that has none yet gives none.

    When a level was run again, the later record counts. A last line that a killed process left half written
    is left out and named in a notice.

    Returns:
        The records in order of their levels' first appearance, and notices for the user.

    Raises:
        ConfigError: another line is damaged, or was written by another version of the format.
    """
    path = experiment_dir / RECORDS_FILE
    if not path.exists():
        return (), ()
    *lines, rest = _read_text(path).split("\n")
    records: dict[int | None, Record] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _parse(line, f"{path}:{number}")
            records[record.level] = record
    if not rest.strip():
        return tuple(records.values()), ()
    if not _is_json(rest):
        notice = f"{path}:{len(lines) + 1}: the last line is half written and was left out."
        return tuple(records.values()), (notice,)
    record = _parse(rest, f"{path}:{len(lines) + 1}")
    records[record.level] = record
    return tuple(records.values()), ()


def append_record(path: Path, record: Record) -> None:
    """Append one line to `path` and flush it to disk; a half written last line is removed first.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            stream.seek(0)
            rest = stream.read().rpartition(b"\n")[2]
            separator = b""
            if rest and _is_json(rest.decode(errors="replace")):
                separator = b"\n"
            elif rest:
                stream.truncate(stream.tell() - len(rest))
            stream.write(separator + record.model_dump_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise StorageError(
            f"{path}: expected to append a record, got '{error.strerror or error}'. "
            "Free some disk space or choose another folder with --output."
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a readable file, got '{error.strerror or error}'. Check its permissions."
        ) from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: str, place: str) -> Record:
    if not _is_json(line):
        raise ConfigError(
            f"{place}: expected a record in JSON, got {line[:40]!r}. Delete that line; its level is then run again."
        )
    return validate(Record, parse_json(line, place))
