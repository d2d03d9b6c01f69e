"""TensorBoard and the other trackers of Accelerate: where else than into metrics.jsonl the numbers of a run go.

An experiment is a run of a tracker, in a project with the name of the run folder. Where it goes on it is another run
there, named after the step; TensorBoard and DVCLive, which have files of its own, go on with those.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparsedet.common.errors import ConfigError, MissingExtraError

TRACKERS_FOLDER = "trackers"


def check_trackers(names: tuple[str, ...]) -> None:
    """Find out whether the trackers can be used, without starting them.

    Raises:
        MissingExtraError: the package of one is not installed, or Accelerate is too old to know it.
    """
    for name in names:
        _tracker_class(name)


class Trackers:
    """Passes metrics on to trackers; one that fails during a run is named and left out, and training goes on.

    Only one process of a run may have them.

    Args:
        names: of Accelerate's trackers.
        folder: of the experiment.
        experiment: its name, which the trackers show.
        settings: the resolved recipe.
        first_step: where the run begins or goes on.
        warn: told about trackers that fail.

    Raises:
        MissingExtraError: the package of a tracker is missing.
        ConfigError: a tracker does not start.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        folder: Path,
        experiment: str,
        settings: Mapping[str, Any],
        first_step: int,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._trackers: dict[str, Any] = {}
        for name in names:
            try:
                self._trackers[name] = _create(name, folder, experiment, first_step)
                getattr(self._trackers[name], "start", lambda: None)()  # of Accelerate since 1.9; before, at once
                self._trackers[name].store_init_configuration(_flat(settings))
            except Exception as error:
                self._abandon()  # those that have started, which would be in the way of the next experiment
                if isinstance(error, MissingExtraError):
                    raise
                raise ConfigError(
                    f"training.trackers: expected '{name}' to start, got {type(error).__name__}: "
                    f"{str(error).rstrip('.')}. Configure it, or leave it out."
                ) from error

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Pass on the `values` of a step; those that are None are left out."""
        known = {key: value for key, value in values.items() if value is not None}
        self._each("log", lambda tracker: tracker.log(known, step=step))

    def finish(self) -> None:
        """End them: what they hold back is written."""
        self._each("finish", lambda tracker: tracker.finish())

    def _each(self, what: str, act: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever it is, it is not worth the run
                self._warn(
                    f"training.trackers: '{name}' failed to {what} and is left out: {type(error).__name__}: {error}"
                )
                self._abandon(name)

    def _abandon(self, *names: str) -> None:
        """End trackers, all if none is named, as far as they can still be ended."""
        for name in names or tuple(self._trackers):
            with suppress(Exception):
                self._trackers[name].finish()
            del self._trackers[name]


def _create(name: str, folder: Path, experiment: str, first_step: int) -> Any:
    from accelerate import PartialState

    kind = _tracker_class(name)
    PartialState(cpu=True)  # trackers ask it which process this is; where there are several, it is there already
    files = folder / TRACKERS_FOLDER
    files.mkdir(parents=True, exist_ok=True)
    project = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().parent.name)[:100] or "sparsedet"
    run = f"{experiment} from step {first_step}" if first_step else experiment
    arguments: dict[str, Any] = {"logging_dir": str(files)} if kind.requires_logging_directory else {}
    match name:
        case "tensorboard":
            return kind(experiment, **arguments, purge_step=first_step)  # files of earlier steps count, no others
        case "dvclive":  # resume: without, what is there is deleted
            place = files / name
            return kind(dir=str(place), dvcyaml=str(place / "dvc.yaml"), resume=first_step > 0)
        case "aim":
            return kind(run, **arguments, experiment=project)
        case "wandb":
            return kind(project, **arguments, name=run, dir=str(files))
        case "swanlab":
            return kind(project, **arguments, experiment_name=run, logdir=str(files / name))
        case "trackio":
            return kind(project, **arguments, name=run)
        case "mlflow":
            return kind(project, **arguments, run_name=run)
        case "comet_ml":
            import comet_ml

            return kind(project, **arguments, experiment_config=comet_ml.ExperimentConfig(name=run))
        case "clearml":  # it would overwrite the last run of that name, and record every file that torch writes
            options = {"reuse_last_task_id": False, "auto_connect_frameworks": False}
            return kind(project, **arguments, task_name=run, **options)
    return kind(run, **arguments)


def _tracker_class(name: str) -> Any:
    from accelerate import tracking

    kind = tracking.LOGGER_TYPE_TO_CLASS.get(name)
    remedy = "pip install 'sparsedet[track]'" if name == "tensorboard" else f"pip install {name}"
    if kind is None:
        remedy = "pip install --upgrade accelerate"
    if kind is None or name not in map(str, tracking.get_available_trackers()):
        raise MissingExtraError(
            f"training.trackers: expected trackers that are installed, got '{name}', which is not. Run: {remedy}"
        )
    return kind


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted keys, with text for what is neither a number nor a truth value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
