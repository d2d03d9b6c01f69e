"""How sure a level's AP is: confidence intervals of it, and of what it lost against the dense detector."""

from pathlib import Path
from typing import Any

from sparsedet.detection.bootstrap import bootstrap
from sparsedet.detection.evaluation import read_results
from sparsedet.report.record import Record
from sparsedet.report.run import DETECTIONS_FILE, SUITE_FILE, load_run


def intervals(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], run_folder: Path, experiment: str, data_hash: str
) -> dict[str, Any]:
    """Return the fields of a record that say how sure its AP is: ``ap_interval`` and ``ap_drop_interval``.

    The drop is that of AP from the dense experiment which the report compares `experiment` with; without a finished
    one on the same data there is none.

    Args:
        ground_truth: normalised COCO data.
        results: detections of the level.
        run_folder: folder of the suite; may have no suite file.
        experiment: name of the experiment.
        data_hash: of the data of the level.
    """
    own = bootstrap(ground_truth, results)
    fields: dict[str, Any] = {"ap_interval": own.interval()}
    dense = _dense_detections(run_folder, experiment, data_hash)
    if dense is not None:
        fields["ap_drop_interval"] = own.drop_from(bootstrap(ground_truth, read_results(dense)))
    return fields


def _dense_detections(run_folder: Path, experiment: str, data_hash: str) -> Path | None:
    """Return the saved detections of the dense experiment that `experiment` is compared with."""
    if not (run_folder / SUITE_FILE).is_file():
        return None
    run = load_run(run_folder)
    own = next((one for one in run.experiments if one.name == experiment), None)
    dense = None if own is None or own.is_dense else run.dense_for(own)
    if dense is None or not dense.is_finished:
        return None
    record: Record = dense.records[-1]
    path = dense.folder / record.folder / DETECTIONS_FILE
    return path if record.data_hash == data_hash and path.is_file() else None
