from typing import ClassVar

import pytest
from accelerate import tracking

from sparsedet.benchmark.trackers import Trackers, check_trackers
from sparsedet.common.errors import ConfigError, MissingExtraError


@pytest.fixture
def stub(monkeypatch):
    """Stands in for TensorBoard's tracker; keeps what it is told in `calls`."""

    class Stub(tracking.GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True
        calls: ClassVar = []
        failing = None

        def __init__(self, run_name, logging_dir, **arguments):
            super().__init__()
            self.calls.append(("init", run_name, logging_dir, arguments))

        @property
        def tracker(self):
            return None

        def act(self, *call):
            if call[0] == self.failing:
                raise OSError("no connection")
            self.calls.append(call)

        def start(self):
            self.act("start")

        def store_init_configuration(self, values):
            self.act("config", values)

        def log(self, values, step=None):
            self.act("log", values, step)

        def finish(self):
            self.act("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Stub)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    return Stub


def build(folder, first_step=0, warn=pytest.fail):
    settings = {"seed": 0, "training": {"lr": 0.1, "freeze": ["a"], "ema": None}}
    return Trackers(("tensorboard",), folder, "lamp", settings, first_step, warn)


def test_what_a_tracker_is_told(stub, tmp_path):
    check_trackers(("tensorboard",))
    assert stub.calls == []
    trackers = build(tmp_path)
    trackers.log({"loss": 1.5, "gradient_norm": None}, 7)
    trackers.finish()
    assert stub.calls == [
        ("init", "lamp", str(tmp_path / "trackers"), {"purge_step": 0}),
        ("start",),
        ("config", {"seed": 0, "training.lr": 0.1, "training.freeze": "['a']"}),
        ("log", {"loss": 1.5}, 7),
        ("finish",),
    ]


def test_a_run_that_goes_on_tells_tensorboard_where(stub, tmp_path):
    build(tmp_path, first_step=4)
    assert stub.calls[0][3] == {"purge_step": 4}


@pytest.mark.parametrize("what", ["start", "config"])
def test_a_tracker_that_does_not_start_is_an_error(what, stub, tmp_path):
    stub.failing = what
    with pytest.raises(ConfigError, match="expected 'tensorboard' to start, got OSError: no connection"):
        build(tmp_path)


def test_one_that_does_not_start_ends_those_that_have(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    with pytest.raises(MissingExtraError, match="got 'wandb'"):
        Trackers(("tensorboard", "wandb"), tmp_path, "lamp", {}, 0, pytest.fail)
    assert stub.calls[-1] == ("finish",)


def test_one_that_fails_is_ended_so_that_the_next_experiment_can_start_it(stub, tmp_path):
    trackers = build(tmp_path, warn=lambda _: None)
    stub.failing = "log"
    trackers.log({"loss": 1.5}, 0)
    assert stub.calls[-1] == ("finish",)


class Recorder(tracking.GeneralTracker):
    """Stands in for any tracker and does nothing; the last one's arguments are in `told`."""

    requires_logging_directory = False
    name = tracker = None

    def __init__(self, *arguments, **options):
        super().__init__(_blank=True)
        Recorder.told = (*arguments, options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wandb", ("mine-2", {"name": "lamp from step 4", "dir": "{files}"})),
        ("mlflow", ("mine-2", {"run_name": "lamp from step 4"})),
        ("trackio", ("mine-2", {"name": "lamp from step 4"})),
        ("swanlab", ("mine-2", {"experiment_name": "lamp from step 4", "logdir": "{files}/swanlab"})),
        ("dvclive", ({"dir": "{files}/dvclive", "dvcyaml": "{files}/dvclive/dvc.yaml", "resume": True},)),
    ],
)
def test_names_and_places_of_the_others(name, expected, tmp_path, monkeypatch):
    kind = next(kind for kind in tracking.LoggerType if str(kind) == name)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Recorder)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [kind])
    folder = tmp_path / "mine #2" / "lamp"
    Trackers((name,), folder, "lamp", {}, 4, pytest.fail)
    *words, options = expected
    files = str(folder / "trackers")
    options = {key: value.format(files=files) if isinstance(value, str) else value for key, value in options.items()}
    assert Recorder.told == (*words, options)


@pytest.mark.parametrize("what", ["log", "finish"])
def test_a_tracker_that_fails_later_is_named_and_left_out(what, stub, tmp_path):
    warnings = []
    trackers = build(tmp_path, warn=warnings.append)
    stub.failing = what
    for step in (1, 2):
        trackers.log({"loss": 1.5}, step)
    trackers.finish()
    trackers.finish()
    assert warnings == [f"training.trackers: 'tensorboard' failed to {what} and is left out: OSError: no connection"]


@pytest.mark.parametrize(("name", "remedy"), [("tensorboard", r"'sparsedet\[track\]'"), ("wandb", "install wandb")])
def test_a_tracker_that_is_not_installed_says_what_to_install(name, remedy, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(MissingExtraError, match=f"expected trackers that are installed, got '{name}'.*{remedy}"):
        check_trackers((name,))


def test_a_tracker_that_accelerate_does_not_know_yet(monkeypatch):
    monkeypatch.delitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", raising=False)
    with pytest.raises(MissingExtraError, match="pip install --upgrade accelerate"):
        check_trackers(("trackio",))


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, steps in ((0, (0, 1)), (0, (0, 1, 2, 3)), (2, (2, 3))):
        trackers = build(tmp_path, first_step)
        for step in steps:
            trackers.log({"train/loss": float(step + 10 * first_step)}, step)
        trackers.finish()
    events = EventAccumulator(str(tmp_path / "trackers" / "lamp"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 0), (1, 1), (2, 22), (3, 23)]
