"""The recipes and suites that come with sparsedet, found by bare name."""

from pathlib import Path

from sparsedet.common.errors import ConfigError, did_you_mean


def find_config(name: str) -> Path:
    """Return the file `name`, or the shipped recipe or suite of that name (with or without ``.yaml``).

    Raises:
        ConfigError: there is neither; the message lists what is shipped.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = _folder()
    patterns = ("*.yaml", "suites/*.yaml", "published/*.yaml")
    shipped = {file.name: file for pattern in patterns for file in sorted(folder.glob(pattern))}
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    raise ConfigError(
        f"{name}: expected a file, or one of the shipped {sorted(shipped)}, got neither.{did_you_mean(name, shipped)} "
        "Check the path."
    )


def _folder() -> Path:
    """Return the folder of the shipped files: inside an installed package, or at the top of a source tree."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"
