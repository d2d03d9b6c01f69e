import os

import pytest

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.json_file import parse_json, read_bytes


def fault(function, *arguments):
    with pytest.raises(DatasetError) as raised:
        function(*arguments)
    return str(raised.value)


def test_what_is_no_ordinary_file_is_not_read(tmp_path):
    assert fault(read_bytes, tmp_path) == f"{tmp_path}: expected a JSON file, got no ordinary file. Check the path."
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "got no ordinary file" in fault(read_bytes, tmp_path / "pipe")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(4 * 2**30 + 1)  # takes no room on the disk
    assert fault(read_bytes, path) == (
        f"{path}: expected a JSON file of at most 4294967296 bytes, got 4294967297 bytes. "
        "Split it into several data sets."
    )


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 2000 + b"]" * 2000])
def test_deep_json_is_refused(tmp_path, content):
    message = fault(parse_json, content, tmp_path)
    assert message.startswith(
        f"{tmp_path}: expected JSON nested less than some hundred levels, got {len(content)} bytes"
    )


def test_json_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    def loads(content):
        raise MemoryError

    monkeypatch.setattr("json.loads", loads)
    assert "expected JSON that fits into memory, got 2 bytes that do not" in fault(parse_json, b"{}", tmp_path)
