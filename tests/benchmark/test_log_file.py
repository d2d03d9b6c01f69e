import re

import pytest

from sparsedet.benchmark.log_file import open_log
from sparsedet.common.errors import ConfigError


def texts(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in lines)
    return [line[27:] for line in lines]


def test_a_log_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sparsedet", "train", "my file"])
    for text in ("one", "图像"):
        with open_log(tmp_path / "log.txt", pytest.fail) as log:
            log.write(text)
    head = "sparsedet 0.1.0: sparsedet train 'my file'"
    assert texts(tmp_path / "log.txt") == [head, "one", head, "图像"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ConfigError("seed: expected …"), "ended: seed: expected …"), (KeyboardInterrupt(), "KeyboardInterrupt"),
     (ZeroDivisionError("why"), "ZeroDivisionError: why")],
)  # fmt: skip
def test_a_log_ends_with_the_error(error, expected, tmp_path):
    with pytest.raises(type(error)), open_log(tmp_path / "log.txt", pytest.fail):
        raise error
    last = (tmp_path / "log.txt").read_text(encoding="utf-8").rstrip().splitlines()[-1]
    assert last.endswith(expected)


def test_without_room_a_run_goes_on(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    warnings = []
    with open_log(tmp_path / "log.txt", warnings.append) as log:
        log._stream = Full()
        log.write("one")
        log.write("two")
    assert warnings == ["log.txt is no longer written: No space left on device"]
