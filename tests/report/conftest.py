"""A small run folder made by hand: dense, two level-wise experiments, one of them still running, and 2:4."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sparsedet.report.record import Record, append_record

METRICS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
)
LABEL = "retinanet (r18, bs=8*16, epoch=2*12)"


def make_record(**changes) -> Record:
    """A dense record with AP 0.612, changed where asked."""
    ap = changes.pop("ap", 0.612)
    values = {
        "experiment": "dense",
        "family": "small models",
        "label": LABEL,
        "scheduler": "dense",
        "pattern": "none",
        "num_levels": 1,
        "measured_sparsity": 0.0,
        "macs_kept": 1.0,
        "num_macs": 2_000_000,
        "num_parameters": 1_000,
        "num_nonzero": 1_000,
        "size_bytes_dense": 4_120_000,
        "size_bytes_sparse": 4_131_000,
        "metrics": dict.fromkeys(METRICS, 0.5) | {"ap": ap, "ap50": 0.9, "ar_large": -1.0},
        "loss": 0.25,
        "steps": 3200,
        "seconds": 45.25,
        "seed": 0,
        "initial_weights": "from scratch",
        "environment": {"torch": "2.9", "device": "cpu", "flush_denormal": True},
        "config_hash": "c0ffee",
        "data_hash": "da7a",
        "folder": "dense",
    }
    return Record(**(values | changes))


def make_level(experiment: str, level: int, target: float, ap: float, macs_kept: float, **changes) -> Record:
    """A level-wise record of two levels; allocated and measured sparsity are a little below the asked one."""
    changes = {
        "scheduler": "level_wise",
        "pattern": "unstructured",
        "allocation": experiment,
        "level": level,
        "num_levels": 2,
        "target_sparsity": target,
        "allocated_sparsity": round(target - 0.0005, 6),
        "measured_sparsity": round(target - 0.001, 6),
        "measured_sparsity_chosen": target,
        "num_nonzero": round(1000 * (1 - target)),
        "size_bytes_sparse": round(4_000_000 * (1.03 - target)),
        "ap_after_pruning": ap / 2,
        "steps": 560,
        "folder": f"sparsity-{target:.2f}",
    } | changes
    return make_record(experiment=experiment, ap=ap, macs_kept=macs_kept, **changes)


N_M = {
    "pattern": "2:4", "scheduler": "one_shot", "allocation": None, "num_levels": 1, "target_sparsity": None,
    "allocated_sparsity": None, "measured_sparsity": 0.488, "folder": "2-4", "published_ap": 0.6,
}  # fmt: skip


def write_suite(run_dir: Path, *names: str, title: str = "Digits", **entries) -> None:
    """Write `suite.json` of experiments with one family and label unless `entries` says more."""
    experiments = [{"name": name, "family": "small models", "label": LABEL} | entries.get(name, {}) for name in names]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "suite.json").write_text(json.dumps({"title": title, "experiments": experiments}))


def add(run_dir: Path, *records: Record) -> None:
    """Append records and write the layers and the detections of their levels."""
    for record in records:
        append_record(run_dir / record.experiment / "records.jsonl", record)
        folder = run_dir / record.experiment / record.folder
        folder.mkdir(parents=True, exist_ok=True)
        sparsity = record.target_sparsity or 0.0
        layers = [{"name": "backbone.conv1", "sparsity": 0.0}, {"name": "neck.fpn", "sparsity": sparsity}]
        (folder / "layers.json").write_text(json.dumps(layers))
        boxes = [
            {"image_id": 7, "category_id": 4, "bbox": [32, 32, 64, 64], "score": 0.91},
            {"image_id": 7, "category_id": 9, "bbox": [4, 80, 30, 30], "score": 0.29},
            {"image_id": 99, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 0.99},
        ]
        (folder / "detections.json").write_text(json.dumps(boxes))


def add_samples(run_dir: Path, experiment: str) -> None:
    """Save one grey image of 128 × 128 pixels with one ground-truth box."""
    folder = run_dir / experiment
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (128, 128), (128, 128, 128)).save(folder / "samples" / "7.png")
    image = {"image_id": 7, "file": "samples/7.png", "boxes": [{"bbox": [32, 32, 64, 64], "category_id": 4}]}
    categories = [{"id": 4, "name": "four"}, {"id": 9, "name": "nine"}]
    (folder / "samples.json").write_text(json.dumps({"images": [image], "categories": categories}))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Dense, `lamp` (30 and 90 %), `energy` (30 % so far) and `ampere` (2:4)."""
    folder = tmp_path / "run"
    write_suite(folder, "dense", "lamp", "energy", "ampere")
    add(folder, make_record())
    add(folder, make_level("lamp", 0, 0.3, 0.6, 0.74), make_level("lamp", 1, 0.9, 0.5504, 0.29))
    add(folder, make_level("energy", 0, 0.3, 0.58, 0.7, size_bytes_dense=None, size_bytes_sparse=None))  # an old one
    add(folder, make_level("ampere", 0, 0.5, 0.605, 0.61, **N_M))
    for name in ("dense", "lamp", "energy", "ampere"):
        add_samples(folder, name)
    return folder


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions above, for tests that make a run of their own."""
    return SimpleNamespace(
        record=make_record, level=make_level, n_m=N_M, suite=write_suite, add=add, samples=add_samples
    )
