"""A run folder is read whole, half finished, or refused with a reason."""

import json

import pytest

from sparsedet.common.errors import ConfigError
from sparsedet.report.run import Entry, Experiment, Run, load_run, read_saved

LABEL = "retinanet (r18, bs=8*16, epoch=2*12)"


def test_experiments_in_the_order_of_the_suite(run_dir):
    run = load_run(run_dir)
    assert run.title == "Digits"
    assert [(e.name, e.entry.family, e.entry.label, len(e.records)) for e in run.experiments] == [
        ("dense", "small models", LABEL, 1),
        ("lamp", "small models", LABEL, 2),
        ("energy", "small models", LABEL, 1),
        ("ampere", "small models", LABEL, 1),
    ]
    assert [e.is_finished for e in run.experiments] == [True, True, False, True]
    assert [record.ap for record in run.records] == [0.612, 0.6, 0.5504, 0.58, 0.605]
    assert run.notices == ()


def test_suite_that_has_just_started(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp")
    run = load_run(tmp_path)
    assert [(e.records, e.scheme, e.is_finished) for e in run.experiments] == [((), None, False)] * 2


def test_notes_of_the_suite_are_notices_of_the_run(tmp_path):
    (tmp_path / "suite.json").write_text('{"title": "t", "notes": ["Small data."], "experiments": []}')
    assert load_run(tmp_path).notices == ("Small data.",)


def test_half_written_record_is_a_notice_of_the_run(run_dir):
    with (run_dir / "lamp" / "records.jsonl").open("a") as stream:
        stream.write('{"half')
    notice = f"{run_dir}/lamp/records.jsonl:3: the last line is half written and was left out."
    assert load_run(run_dir).notices == (notice,)


@pytest.mark.parametrize(("name", "found"), [("absent", "nothing"), (".", "a folder without it"), ("file", "a file")])
def test_other_folder_is_refused(tmp_path, name, found):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as raised:
        load_run(tmp_path / name)
    assert str(raised.value) == (
        f"{tmp_path / name}: expected a run folder with suite.json, got {found}. "
        "Give the folder that 'sparsedet train', 'bench' or 'demo' wrote."
    )


ENTRY = {"name": "lamp", "family": "f", "label": "l"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "suite.json: expected a mapping in JSON"),
        ("[]", "suite.json: expected a mapping in JSON"),
        ("[" * 5000, "suite.json: expected a mapping in JSON"),
        (json.dumps({"experiments": []}), "suite.json: title: expected a value, got nothing."),
        (
            json.dumps({"title": "t", "experiments": [ENTRY, ENTRY]}),
            "suite.json: experiments: expected different names, got ['lamp', 'lamp']. Rename one experiment.",
        ),
        (
            json.dumps({"title": "t", "experiments": [ENTRY | {"name": "../x"}]}),
            "experiments[0].name: expected string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', got '../x'.",
        ),
        (
            json.dumps({"title": "t", "experiments": [ENTRY | {"name": "x" * 201}]}),
            "experiments[0].name: expected string",
        ),
        (json.dumps({"title": "t", "experiments": [ENTRY | {"lable": "x"}]}), "Did you mean 'label'?"),
    ],
)
def test_damaged_suite_is_an_error(tmp_path, text, message):
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_run(tmp_path)
    assert message in str(raised.value)


def test_read_saved_tells_what_is_missing(tmp_path):
    (tmp_path / "layers.json").write_text("[{}]")
    with pytest.raises(ConfigError) as raised:
        read_saved(tmp_path / "layers.json", lambda rows: rows[0]["name"])
    assert str(raised.value) == (
        f"{tmp_path}/layers.json: expected JSON as a run writes it, got KeyError ('name'). "
        "Delete the folder of that experiment and run it again."
    )


def _run(tmp_path, *entries: Entry) -> Run:
    return Run(tmp_path, "", tuple(Experiment(entry, tmp_path / entry.name, ()) for entry in entries))


def _entry(name: str, label: str, **more: str) -> Entry:
    return Entry(name=name, family="f", label=label, **more)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([_entry("d", "x", scheduler="dense"), _entry("s", "x")], "d"),
        ([_entry("d", "other", scheduler="dense"), _entry("s", "x")], "d"),
        ([_entry("d", "y", scheduler="dense"), _entry("e", "x", scheduler="dense"), _entry("s", "x")], "e"),
        ([_entry("d", "y", scheduler="dense"), _entry("e", "z", scheduler="dense"), _entry("s", "x")], None),
        (
            [
                _entry("d", "y", scheduler="dense"),
                _entry("e", "x", scheduler="dense"),
                _entry("s", "x", start="d"),
            ],
            "d",
        ),
        # a control that trains on from `d` is not what the rows are compared with
        (
            [
                _entry("c", "x", scheduler="dense", start="d"),
                _entry("d", "x", scheduler="dense"),
                _entry("s", "x"),
            ],
            "d",
        ),
        (
            [_entry("d", "x", scheduler="dense"), _entry("s", "x", start="d"), _entry("t", "x", start="s")],
            "d",
        ),
        ([_entry("s", "x", start="s")], None),
        ([_entry("s", "x")], None),
        ([_entry("d", "x", scheduler="dense"), _entry("s", "x", start="gone")], None),
    ],
)
def test_the_dense_experiment_that_one_is_compared_with(tmp_path, entries, expected):
    run = _run(tmp_path, *entries)
    dense = run.dense_for(run.experiments[-1])
    assert (dense and dense.name) == expected


@pytest.mark.parametrize(
    ("scheduler", "pattern", "expected"),
    [
        ("dense", "none", "Dense"),
        ("level_wise", "unstructured", "Level-wise pruning"),
        ("one_shot", "unstructured", "One-shot pruning"),
        ("one_shot", "2:4", "2:4"),
        ("cubic", None, "Cubic pruning"),
        (None, None, None),
    ],
)
def test_scheme_is_known_before_the_first_record_if_the_suite_says_it(tmp_path, scheduler, pattern, expected):
    entry = _entry("e", "x", scheduler=scheduler, pattern=pattern)
    assert Experiment(entry, tmp_path, ()).scheme == expected


def test_budgets_of_weights_and_of_macs_do_not_share_a_table(tmp_path, make):
    entry = _entry("e", "x", scheduler="level_wise", pattern="unstructured", budget="macs")
    expected = "Level-wise pruning, share of MACs removed"
    assert Experiment(entry, tmp_path, ()).scheme == expected
    assert (
        Experiment(_entry("e", "x"), tmp_path, (make.level("e", 0, 0.3, 0.6, 0.7, budget="macs"),)).scheme == expected
    )


def test_scheme_of_records(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp", "ampere")
    make.add(
        tmp_path,
        make.record(),
        make.level("lamp", 0, 0.3, 0.6, 0.7),
        make.level("ampere", 0, 0.5, 0.6, 0.6, **make.n_m),
    )
    assert [e.scheme for e in load_run(tmp_path).experiments] == ["Dense", "Level-wise pruning", "2:4"]


def test_a_link_out_of_the_run_folder_is_refused(tmp_path, make):
    make.suite(tmp_path / "run", "lamp")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "lamp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"lamp: expected a folder inside the run folder, got a link to .*elsewhere"):
        load_run(tmp_path / "run")
