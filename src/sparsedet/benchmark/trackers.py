"""TensorBoard and the other trackers of Accelerate: where else than into metrics.jsonl the numbers of a run go."""

from collections.abc import Callable, Mapping
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
        first_step: where the run begins or goes on: TensorBoard forgets what it was told of this step and later.
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
                self._trackers[name] = _start(name, folder / TRACKERS_FOLDER, experiment, first_step)
                self._trackers[name].store_init_configuration(_flat(settings))
            except MissingExtraError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"training.trackers: expected '{name}' to start, got {type(error).__name__}: {error}. "
                    "Configure it, or leave it out."
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
                del self._trackers[name]
                self._warn(f"training.trackers: '{name}' failed to {what} and is left out: {error}")


def _start(name: str, folder: Path, experiment: str, first_step: int) -> Any:
    from accelerate import PartialState

    kind = _tracker_class(name)
    PartialState(cpu=True)  # trackers ask it which process this is; where there are several, it is there already
    folder.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {}
    if kind.requires_logging_directory:
        arguments["logging_dir"] = str(folder)
    if name == "tensorboard" and first_step:
        arguments["purge_step"] = first_step
    if name == "wandb":
        arguments["dir"] = str(folder)  # which else is the working directory
    tracker = kind(experiment, **arguments)
    getattr(tracker, "start", lambda: None)()  # of Accelerate since 1.9; before, they start at once
    return tracker


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
