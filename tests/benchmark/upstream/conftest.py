"""Files in United-Perception's dialect, and a walk over all keys of such a file."""

import os
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from sparsedet.benchmark.upstream.file import Translator, read_config
from sparsedet.common.document import format_path
from sparsedet.common.errors import ConfigError

FILES = Path(__file__).parent / "files"
LISTS = {"net": "name", "hooks": "type"}


@pytest.fixture
def files():
    """Folder with our own files in United-Perception's dialect."""
    return FILES


@pytest.fixture
def up_configs(request):
    """Folder with United-Perception's own configuration files."""
    folder = os.environ.get("SPARSEDET_UP_CONFIGS")
    if not folder:
        claim = request.node.originalname.removeprefix("test_").replace("_", " ")
        pytest.skip(f"SPARSEDET_UP_CONFIGS is not set: not shown of United-Perception's own eight files: {claim}")
    return Path(folder)


@pytest.fixture
def translate():
    """Function of a file and ``key=value`` overrides: native data and the notes by their keys."""

    def run(path, *overrides):
        translator = Translator(overrides)
        native = translator.translate(deepcopy(_read(path)))
        notes = {}
        for note in translator.notes:
            notes.setdefault(note.key, []).append(note)
        return native.data, notes

    return run


@pytest.fixture
def native_value(files, translate):
    """Function of one of our files, an override and a dotted native key: the value that it becomes."""

    def run(name, override, place):
        data, _ = translate(files / name, override)
        for key in place.split("."):
            data = data[key]
        return data

    return run


@pytest.fixture
def refusal(files, translate):
    """Function of one of our files and an override: the message with which it is refused."""

    def run(name, override):
        with pytest.raises(ConfigError) as error:
            translate(files / name, override)
        return str(error.value)

    return run


@pytest.fixture
def edited(files, tmp_path):
    """Function of one of our files and pairs of old and new text: a changed copy of it."""

    def run(name, *pairs):
        text = (files / name).read_text()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.write_text(text)
        return path

    return run


@pytest.fixture
def uncovered():
    """Function of a file and its notes: keys that nothing was said about."""

    def run(path, notes):
        names = [format_path(leaf) for leaf in _leaves(read_config(path).data, ())]
        assert len(names) > 40
        return [name for name in names if not _is_covered(name, notes)]

    return run


@cache
def _read(path):
    return read_config(path)


def _leaves(node, path):
    """Yield the path of every key without keys below it; entries with a name of their own stand under it."""
    if path in {("net",), ("hooks",)}:
        node = {entry[LISTS[path[0]]]: entry for entry in node}
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or not node:
        yield path
        return
    for key, item in node.items():
        yield from _leaves(item, (*path, key))


def _is_covered(name, notes):
    if name in notes:
        return True
    parents = [name[:end] for end, letter in enumerate(name) if letter in ".["]
    return any(note.outcome == "no effect" for parent in parents for note in notes.get(parent, ()))
