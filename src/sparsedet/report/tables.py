"""The tables of a report as rows of text: first in the published layout, then all that every level measured.

Text is made here, so this is where sparsity and AP become percent.
"""

from collections import Counter
from dataclasses import dataclass

from sparsedet.report.record import Record
from sparsedet.report.run import Experiment, Run

CORNER = "Network(config)/sparsity"
PENDING = "…"

# Left out where no row has anything.
_OPTIONAL_COLUMNS = ("AP after re-estimation", "AP interval", "AP lost", "published AP", "difference")


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        section: heading over the tables of one scheduler, such as "Level-wise pruning".
        title: heading of this table, the model family; may be empty.
        header: one text per column.
        rows: one text per column, for each row.
    """

    section: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def ap_text(value: float | None) -> str:
    """AP in percent with one decimal; empty for None, `n/a` where COCO defines none (negative)."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if value >= 0 else "n/a"


def interval_text(interval: tuple[float, float] | None) -> str:
    """An interval of AP in percent; empty for None."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def share_text(value: float | None, decimals: int = 2) -> str:
    """A share as percent; empty for None."""
    return "" if value is None else f"{100 * value:.{decimals}f}%"


def megabytes_text(num_bytes: int | None) -> str:
    """Bytes as megabytes (1e6 bytes); empty for None."""
    return "" if num_bytes is None else f"{num_bytes / 1e6:.2f}"


def sparsity_name(sparsity: float) -> str:
    """Name of a level by the sparsity asked for: ``30%``, ``87.5%``."""
    return f"{100 * sparsity:.6g}%"


def level_name(record: Record) -> str:
    """Short name of a record within its experiment: ``dense``, ``30%``, ``30% of MACs``, ``2:4``."""
    if record.is_dense or record.asked_sparsity is None:
        return record.scheduler
    if record.is_n_m:
        return record.pattern
    return sparsity_name(record.asked_sparsity) + (" of MACs" if record.budget == "macs" else "")


def published_tables(run: Run) -> tuple[Table, ...]:
    """Tables in the published layout: one per scheduler and family, one row per label, AP in percent.

    Experiments with the same label in one table get their name added. A level still to come shows `…`. Values
    published elsewhere stand in a row of their own below. Dense experiments that no row of another table shows
    come last, as a table of their own.
    """
    sparse = [experiment for experiment in run.experiments if experiment.scheme and not experiment.is_dense]
    in_a_column = {dense.name for dense in map(run.dense_for, sparse) if dense}
    groups: dict[str, dict[str, list[Experiment]]] = {}
    alone = [experiment for experiment in run.experiments if experiment.is_dense and experiment.name not in in_a_column]
    for experiment in (*sparse, *alone):
        families = groups.setdefault(str(experiment.scheme), {})
        families.setdefault(experiment.entry.family, []).append(experiment)
    return tuple(
        _published_table(run, scheme, family, experiments)
        for scheme, families in groups.items()
        for family, experiments in families.items()
    )


def _published_table(run: Run, scheme: str, family: str, experiments: list[Experiment]) -> Table:
    sparsities = sorted(sparsity for experiment in experiments for sparsity in _asked(experiment))
    columns = tuple(dict.fromkeys(sparsity_name(sparsity) for sparsity in sparsities))
    labels = Counter(
        other.entry.label for other in run.experiments if (other.scheme, other.entry.family) == (scheme, family)
    )
    rows = []
    for experiment in experiments:
        label = experiment.entry.label
        cells = {sparsity_name(sparsity): PENDING for sparsity in experiment.entry.sparsities}
        cells |= {
            sparsity_name(record.asked_sparsity): ap_text(record.ap)
            for record in experiment.records
            if record.asked_sparsity is not None
        }
        row = f"{label}, {experiment.name}" if labels[label] > 1 else label
        dense = experiment if experiment.is_dense else run.dense_for(experiment)
        rows.append((row, _dense_cell(dense), *(cells.get(column, "") for column in columns)))
        published = _published_cells(experiment, dense)
        if any(published.values()):
            rows.append((f"{row}, published", *(published.get(column, "") for column in ("dense", *columns))))
    return Table(scheme, family, (CORNER, "dense", *columns), tuple(rows))


def _published_cells(experiment: Experiment, dense: Experiment | None) -> dict[str, str]:
    """AP published elsewhere for the cells of a row, by column."""
    entry = experiment.entry
    values = dict(zip(map(sparsity_name, entry.sparsities), entry.published_ap, strict=False))
    if dense is not None and dense.entry.published_ap:
        values["dense"] = dense.entry.published_ap[0]
    return {column: ap_text(value) for column, value in values.items()}


def _asked(experiment: Experiment) -> list[float]:
    asked = [record.asked_sparsity for record in experiment.records if record.asked_sparsity is not None]
    return [*experiment.entry.sparsities, *asked]


def _dense_cell(dense: Experiment | None) -> str:
    if dense is None:
        return ""
    return ap_text(dense.records[-1].ap) if dense.records else PENDING


def detail_table(run: Run) -> Table:
    """One row per record: asked, allocated and measured sparsity, accuracy, cost, and the published value."""
    header: tuple[str, ...] = (
        "experiment", "asked", "allocated", "measured", "measured in chosen", "AP after pruning",
        "AP after re-estimation", "AP", "AP interval", "AP lost", "AP50",
        "MACs kept", "parameters", "not zero", "MB dense", "MB compact", "steps", "seconds", "published AP",
        "difference",
    )  # fmt: skip
    rows = tuple(
        _detail_row(experiment.name, record, run.dense_for(experiment))
        for experiment in run.experiments
        for record in experiment.records
    )
    shown = [
        column
        for column, name in enumerate(header)
        if name not in _OPTIONAL_COLUMNS or any(row[column] for row in rows)
    ]
    header, *rows_shown = (tuple(row[column] for column in shown) for row in (header, *rows))
    return Table("All levels", "", header, tuple(rows_shown))


def _detail_row(name: str, record: Record, dense: Experiment | None) -> tuple[str, ...]:
    difference = ""
    if record.published_ap is not None and record.ap >= 0:
        difference = f"{100 * (record.ap - record.published_ap):+.1f}"
    asked = level_name(record)
    if record.is_n_m and record.asked_sparsity is not None:
        asked = f"{sparsity_name(record.asked_sparsity)} ({record.pattern})"
    return (
        name,
        asked,
        share_text(record.allocated_sparsity),
        share_text(record.measured_sparsity),
        share_text(record.measured_sparsity_chosen),
        ap_text(record.ap_after_pruning),
        ap_text(record.ap_after_reestimation),
        ap_text(record.ap),
        interval_text(record.ap_interval),
        _lost_text(record, dense),
        ap_text(record.metrics.get("ap50")),
        share_text(record.macs_kept, 1),
        f"{record.num_parameters:,}",
        f"{record.num_nonzero:,}",
        megabytes_text(record.size_bytes_dense),
        megabytes_text(record.size_bytes_sparse),
        f"{record.steps:,}",
        f"{record.seconds:.1f}",
        ap_text(record.published_ap),
        difference,
    )


def _lost_text(record: Record, dense: Experiment | None) -> str:
    """AP of the dense detector minus that of `record`, with the interval that was found when it was recorded."""
    if record.ap_drop_interval is None or dense is None or not dense.records:
        return ""
    return f"{100 * (dense.records[-1].ap - record.ap):+.1f} ({interval_text(record.ap_drop_interval)})"


def origin_table(run: Run) -> Table:
    """One row per experiment: how far it is and where its numbers come from."""
    header = ("experiment", "levels", "initial weights", "allocation", "seed", "config hash", "data hash")
    return Table("Origin of the numbers", "", header, tuple(map(_origin_row, run.experiments)))


def _origin_row(experiment: Experiment) -> tuple[str, ...]:
    if not experiment.records:
        return (experiment.name, "pending", *[""] * 5)
    record = experiment.records[-1]
    return (
        experiment.name,
        f"{len(experiment.records)} of {max(record.num_levels, 1)}",
        record.initial_weights,
        record.allocation or "",
        str(record.seed),
        record.config_hash,
        record.data_hash,
    )


def environments(run: Run) -> tuple[str, ...]:
    """One sentence per environment that the run has seen, with the experiments that ran in it."""
    names: dict[str, dict[str, None]] = {}
    for record in run.records:
        text = ", ".join(f"{key} {value}" for key, value in record.environment.items())
        names.setdefault(text, {})[record.experiment] = None
    return tuple(f"Environment of {', '.join(found)}: {text}." for text, found in names.items())


def notes(run: Run) -> tuple[str, ...]:
    """Sentences that belong under the tables."""
    sentences = [
        "AP is COCO box AP over IoU 0.50 to 0.95, AP50 at IoU 0.50, both in percent.",
        "Sparsity is the share of zeros: asked for, held by the masks (allocated), and counted (measured) in "
        "all conv and linear weights and in those chosen for pruning.",
        "MACs kept is the share of the dense network's multiply-accumulates whose weight is not zero.",
        "MB (1e6 bytes) are those of all weights and buffers as they are, and of the file that holds the same bits "
        "without the zeros.",
    ]
    if any(record.ap_interval is not None for record in run.records):
        sentences.append(
            "AP interval is a 95 % confidence interval by bootstrap over the validation images; AP lost is AP of the "
            "dense detector minus AP, with its interval from the same resamples. Neither covers trainings with other "
            "seeds."
        )
    unfinished = [experiment.name for experiment in run.experiments if not experiment.is_finished]
    if unfinished:
        sentences.append(f"Not finished, so that cells are empty or show {PENDING}: {', '.join(unfinished)}.")
    return (*sentences, *run.notices)
