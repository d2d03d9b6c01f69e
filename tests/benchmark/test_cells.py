"""Which experiments of a suite are tried again, and which are left out."""

from dataclasses import dataclass
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark import cells
from sparsedet.benchmark.cells import SuiteError, forget_error, note_error, noted_error, run_cells
from sparsedet.benchmark.console import Console
from sparsedet.common import errors
from sparsedet.common.stopping import Stopped
from sparsedet.detection.guard import TrainingError


@dataclass
class Cell:
    name: str
    start: str | None = None


CELLS = (Cell("dense"), Cell("lamp", "dense"), Cell("tuned", "lamp"), Cell("other"))


class Attempts:
    """Fails with the errors of each name, one after another, and then no more."""

    def __init__(self, **failures):
        self.failures = failures
        self.calls = []

    def __call__(self, name):
        self.calls.append(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)


def run(attempts, cells=CELLS):
    said = StringIO()
    console = Console(rich=RichConsole(file=said, soft_wrap=True))
    try:
        run_cells(cells, attempts, console)
    finally:
        attempts.said = said.getvalue()


@pytest.mark.parametrize("kind", [errors.DatasetError, errors.StorageError, errors.ProcessesError])
def test_what_can_pass_is_tried_once_more(kind):
    attempts = Attempts(lamp=[kind("away")])
    run(attempts)
    assert attempts.calls == ["dense", "lamp", "lamp", "tuned", "other"]
    assert "warning: lamp: away It is tried once more, from its last checkpoint.\n" in attempts.said


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.TargetMatchError, errors.CheckpointError, TrainingError])
def test_what_cannot_pass_is_not_tried_again_and_what_starts_from_it_is_left_out(kind):
    attempts = Attempts(lamp=[kind("wrong"), kind("unused")])
    with pytest.raises(SuiteError) as failed:
        run(attempts)
    assert attempts.calls == ["dense", "lamp", "other"]
    assert str(failed.value) == (
        "suite: expected all 4 experiments to finish, got 1 that failed:\n"
        "  lamp: wrong\n"
        "  tuned: not run, since it starts from lamp\n"
        "Remove the cause; the same command then goes on with what is not finished."
    )


def test_what_starts_from_something_left_out_is_left_out_too():
    attempts = Attempts(dense=[errors.ConfigError("wrong")])
    with pytest.raises(SuiteError, match=r"got 1 that failed:\n.*\n.*from dense\n  tuned: .*from lamp\n"):
        run(attempts)
    assert attempts.calls == ["dense", "other"]


def test_what_fails_twice_has_failed():
    attempts = Attempts(
        dense=[errors.DatasetError("away")] * 2, other=[errors.StorageError("full"), TrainingError("inf")]
    )
    with pytest.raises(SuiteError, match=r"got 2 that failed:\n  dense: away\n(.*\n){2}  other: inf\n"):
        run(attempts)
    assert attempts.calls == ["dense", "dense", "other", "other"]


def test_the_only_experiment_fails_with_its_own_error():
    attempts = Attempts(dense=[errors.DatasetError("away"), errors.StorageError("full")])
    with pytest.raises(errors.StorageError, match="full"):
        run(attempts, CELLS[:1])
    assert attempts.calls == ["dense", "dense"]


def test_a_request_to_stop_is_no_failure():
    attempts = Attempts(lamp=[Stopped("stopped", 15)])
    with pytest.raises(Stopped):
        run(attempts)
    assert attempts.calls == ["dense", "lamp"]
    assert "warning" not in attempts.said


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(Attempts(lamp=[ZeroDivisionError()]))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.DatasetError("one: two"), errors.DatasetError),
        (errors.ConfigError("one: two"), errors.SparseDetError),
        (Stopped("one: two", 2), Stopped),
    ],
)
def test_why_an_experiment_ended_can_be_read_by_another_process(error, kind, tmp_path):
    assert noted_error(tmp_path) is None
    note_error(tmp_path, error)
    found = noted_error(tmp_path)
    assert (type(found), str(found)) == (kind, "one: two")
    if kind is Stopped:
        assert found.exit_code == 130
    forget_error(tmp_path)
    assert noted_error(tmp_path) is None


def test_of_several_processes_the_one_with_the_cause_counts(tmp_path):
    note_error(tmp_path, errors.ProcessesError("broken connection"))
    note_error(tmp_path, errors.ConfigError("the cause"))
    note_error(tmp_path, errors.ProcessesError("broken connection"))
    assert str(noted_error(tmp_path)) == "the cause"


def test_a_reason_that_cannot_be_written_or_read_is_none(tmp_path, monkeypatch):
    def fail(path, value):
        raise errors.StorageError("full")

    monkeypatch.setattr(cells, "write_json", fail)
    note_error(tmp_path, errors.ConfigError("wrong"))
    assert noted_error(tmp_path) is None
    for text in ("{", "[]", '{"type": "DatasetError"}'):
        (tmp_path / "error.json").write_text(text)
        assert noted_error(tmp_path) is None
