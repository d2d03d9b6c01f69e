"""Records survive what happens to files: kills in the middle of a line, re-runs, other versions."""

import json
import os

import pytest

from sparsedet.common.errors import ConfigError, StorageError
from sparsedet.report.record import Record, append_record, read_records


def test_records_come_back_equal(tmp_path, make):
    records = (make.level("lamp", 0, 0.3, 0.6, 0.74), make.level("lamp", 1, 0.9, 0.55, 0.29))
    for record in records:
        append_record(tmp_path / "lamp" / "records.jsonl", record)
    assert read_records(tmp_path / "lamp") == (records, ())


def test_a_record_written_before_sizes_were_recorded_is_read(tmp_path, make):
    old = json.loads(make.record().model_dump_json())
    del old["size_bytes_dense"], old["size_bytes_sparse"]
    (tmp_path / "records.jsonl").write_text(json.dumps(old) + "\n")
    (record,), _ = read_records(tmp_path)
    assert (record.ap, record.size_bytes_dense, record.size_bytes_sparse) == (0.612, None, None)


def test_intervals_come_back_and_old_records_have_none(tmp_path, make):
    record = make.record(ap_interval=(0.58, 0.63), ap_drop_interval=(-0.01, 0.02))
    old = json.loads(make.level("lamp", 0, 0.3, 0.6, 0.7).model_dump_json())
    del old["ap_interval"], old["ap_drop_interval"]
    (tmp_path / "records.jsonl").write_text(json.dumps(old) + "\n")
    append_record(tmp_path / "records.jsonl", record)
    first, second = read_records(tmp_path)[0]
    assert (first.ap_interval, first.ap_drop_interval) == (None, None)
    assert second == record


def test_experiment_without_records_gives_none(tmp_path):
    assert read_records(tmp_path / "absent") == ((), ())


def test_the_later_record_of_a_level_counts(tmp_path, make):
    first, second = make.level("lamp", 0, 0.3, 0.1, 0.7), make.level("lamp", 0, 0.3, 0.2, 0.7)
    other = make.level("lamp", 1, 0.9, 0.55, 0.29)
    for record in (first, other, second):
        append_record(tmp_path / "records.jsonl", record)
    assert read_records(tmp_path)[0] == (second, other)


def test_half_written_last_line_is_left_out_with_a_notice_and_removed_by_the_next_append(tmp_path, make):
    path = tmp_path / "records.jsonl"
    first, second = make.level("lamp", 0, 0.3, 0.6, 0.7), make.level("lamp", 1, 0.9, 0.55, 0.29)
    append_record(path, first)
    with path.open("ab") as stream:
        stream.write(second.model_dump_json().encode()[:50])
    assert read_records(tmp_path) == (
        (first,),
        (f"{path}:2: the last line is half written and was left out.",),
    )
    append_record(path, second)
    assert read_records(tmp_path) == ((first, second), ())
    assert path.read_text() == first.model_dump_json() + "\n" + second.model_dump_json() + "\n"


def test_last_line_that_only_lacks_its_line_end_counts(tmp_path, make):
    path = tmp_path / "records.jsonl"
    first, second = make.level("lamp", 0, 0.3, 0.6, 0.7), make.level("lamp", 1, 0.9, 0.55, 0.29)
    path.write_text(first.model_dump_json())
    assert read_records(tmp_path) == ((first,), ())
    append_record(path, second)
    assert read_records(tmp_path) == ((first, second), ())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("[" * 5000, "2: expected a record in JSON, got '[[[["),
        ({"folder": "../../secret"}, "2: folder: expected string should match pattern"),
        ({"folder": "/etc"}, "2: folder: expected string should match pattern"),
        ({"experiment": "a/b"}, "2: experiment: expected string should match pattern"),
        (
            '{"ap": 0.',
            "2: expected a record in JSON, got '{\"ap\": 0.'. Delete that line; its level is then run again.",
        ),
        ("[]", "2: expected a mapping in JSON"),
        ({"format_version": 2}, "2: format_version: expected 1, got 2. Correct the value."),
        (
            {"measured_sparsity": 30},
            "2: measured_sparsity: expected less than or equal to 1, got 30. Correct",
        ),
        ({"sede": 1}, "got the unknown key 'sede'. Did you mean 'seed'?"),
        (
            {"metrics": {"ap50": 0.5}},
            "2: metrics: expected the COCO metrics with 'ap', got ['ap50']. Add 'ap'.",
        ),
    ],
)
def test_damaged_inner_line_is_an_error_that_names_it(tmp_path, damage, message, make):
    good = make.record().model_dump(mode="json")
    line = damage if isinstance(damage, str) else json.dumps(good | damage)
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join([json.dumps(good), line, json.dumps(good), ""]))
    with pytest.raises(ConfigError) as raised:
        read_records(tmp_path)
    assert str(raised.value).startswith(f"{path}:2")
    assert message in str(raised.value)


def test_unreadable_file_is_an_error(tmp_path):
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"records.jsonl: expected a readable file, got 'Is a directory'. Check its"):
        read_records(tmp_path)


def test_folder_that_cannot_be_written_is_an_error(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"records.jsonl: expected to append a record, got 'File exists'. Free"):
        append_record(tmp_path / "file" / "records.jsonl", make.record())


def test_appended_record_is_flushed_to_disk(tmp_path, monkeypatch, make):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    append_record(tmp_path / "records.jsonl", make.record())
    assert synced == [(tmp_path / "records.jsonl").stat().st_size]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"scheduler": "level_wise", "pattern": "unstructured", "target_sparsity": 0.3}, 0.3),
        ({"scheduler": "one_shot", "pattern": "2:4"}, 0.5),
        ({"scheduler": "one_shot", "pattern": "1:4"}, 0.75),
        ({"scheduler": "one_shot", "pattern": "2:4", "target_sparsity": 0.5}, 0.5),
    ],
)
def test_asked_sparsity(changes, expected, make):
    assert make.record(**changes).asked_sparsity == expected


def test_what_kind_of_record_it_is(make):
    dense, sparse = make.record(ap=0.25), make.level("ampere", 0, 0.5, 0.6, 0.6, **make.n_m)
    assert (dense.is_dense, dense.is_n_m, dense.ap) == (True, False, 0.25)
    assert (sparse.is_dense, sparse.is_n_m) == (False, True)


def test_numbers_that_json_does_not_know_are_refused(make):
    with pytest.raises(ValueError, match="finite"):
        make.record(loss=float("nan"))


def test_every_field_is_documented_or_plain():
    plain = {"format_version", "num_levels", "seed", "config_hash", "data_hash"}
    missing = [name for name in Record.model_fields if f"{name}:" not in (Record.__doc__ or "")]
    assert set(missing) <= plain
