"""Which detector a level is compared with; the numbers themselves are tested with `bootstrap`."""

import json

import pytest

from sparsedet.benchmark.intervals import intervals
from sparsedet.detection.bootstrap import bootstrap
from sparsedet.report.record import Record, append_record

TRUTH = {
    "images": [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 64} for number in range(1, 9)],
    "categories": [{"id": 3, "name": "bright"}],
    "annotations": [
        {"id": number, "image_id": number, "category_id": 3, "bbox": [9, 9, 20, 20], "area": 400, "iscrowd": 0}
        for number in range(1, 9)
    ],
}


def found(*image_ids):
    return [{"image_id": number, "category_id": 3, "bbox": [9, 9, 20, 20], "score": 0.5} for number in image_ids]


DENSE, SPARSE = found(1, 2, 3, 4, 5, 6, 7), found(1, 2, 3)


def record(experiment, **changes):
    values = {
        "experiment": experiment,
        "family": "",
        "label": "tiny",
        "scheduler": "dense",
        "pattern": "none",
        "num_levels": 1,
        "measured_sparsity": 0.0,
        "macs_kept": 1.0,
        "num_macs": 1,
        "num_parameters": 1,
        "num_nonzero": 1,
        "metrics": {"ap": 0.5},
        "steps": 1,
        "seconds": 1.0,
        "seed": 0,
        "initial_weights": "from scratch",
        "environment": {},
        "config_hash": "c",
        "data_hash": "d",
        "folder": "dense",
    }
    return Record(**(values | changes))


@pytest.fixture
def suite(tmp_path):
    """Folder of a suite in which the dense experiment has finished."""
    entries = [
        {"name": "dense", "family": "", "label": "tiny", "scheduler": "dense"},
        {"name": "lamp", "family": "", "label": "tiny", "start": "dense", "scheduler": "level_wise"},
    ]
    (tmp_path / "suite.json").write_text(json.dumps({"title": "Tiny", "experiments": entries}))
    append_record(tmp_path / "dense" / "records.jsonl", record("dense"))
    (tmp_path / "dense" / "dense").mkdir()
    (tmp_path / "dense" / "dense" / "detections.json").write_text(json.dumps(DENSE))
    return tmp_path


def test_the_drop_is_that_from_the_dense_experiment(suite):
    sparse = bootstrap(TRUTH, SPARSE)
    assert intervals(TRUTH, SPARSE, suite, "lamp", "d") == {
        "ap_interval": sparse.interval(),
        "ap_drop_interval": sparse.drop_from(bootstrap(TRUTH, DENSE)),
    }
    low, high = sparse.drop_from(bootstrap(TRUTH, DENSE))
    assert 0.1 < low < 0.5 < high < 0.9  # 4 of 8 objects more


def unfinished(suite):
    (suite / "dense" / "records.jsonl").unlink()


def without_detections(suite):
    (suite / "dense" / "dense" / "detections.json").unlink()


def no_suite(suite):
    (suite / "suite.json").unlink()


@pytest.mark.parametrize("change", [unfinished, without_detections, no_suite])
def test_without_a_dense_detector_there_is_no_drop(suite, change):
    change(suite)
    assert intervals(TRUTH, SPARSE, suite, "lamp", "d") == {"ap_interval": bootstrap(TRUTH, SPARSE).interval()}


@pytest.mark.parametrize(("experiment", "data_hash"), [("dense", "d"), ("lamp", "other"), ("unknown", "d")])
def test_nothing_is_compared_with_itself_or_with_other_data(suite, experiment, data_hash):
    assert set(intervals(TRUTH, SPARSE, suite, experiment, data_hash)) == {"ap_interval"}
