import errno
import os
import shutil
import struct
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsedet.common.checkpoint import load_checkpoint, read_file, save_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError, StorageError
from sparsedet.common.files import hash_json, write_atomically
from sparsedet.common.runtime import choose_device, start, writable_folder

Usage = namedtuple("Usage", "total used free")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="f: expected to write the file, got 'No space left on device'"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_round_trip(tmp_path):
    content = {"weights": {"a": torch.tensor([0.0, -0.0, float("nan")])}, "step": 3, "names": ["x"]}
    save_checkpoint(tmp_path / "c.pt", content)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded["step"] == 3
    assert loaded["names"] == ["x"]
    assert torch.equal(loaded["weights"]["a"].view(torch.int32), content["weights"]["a"].view(torch.int32))


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    with pytest.raises(StorageError, match=r"expected \d+ MiB of free disk, got 0 MiB\. Free some space"):
        save_checkpoint(tmp_path / "c.pt", {"a": torch.zeros(4)})
    assert not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_damaged_foreign_and_executable_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match=r"c\.pt: expected a checkpoint file, got nothing\. Check the path"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint file, got a folder\. Check the path"):
        load_checkpoint(tmp_path)
    save_checkpoint(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="expected a whole checkpoint, got an unreadable file"):
        load_checkpoint(path)
    path.write_text("plain text, and no pickle")
    with pytest.raises(CheckpointError, match=r"got an unreadable file \(it was not written by torch\.save\)"):
        load_checkpoint(path)
    path.write_text("hi")  # of which pickle says no more than '105'
    with pytest.raises(CheckpointError, match=r"got an unreadable file \(it was not written by torch\.save\)"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"got an unreadable file \(it is empty\)"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="expected a file written by sparsedet, got another program's"):
        load_checkpoint(path)
    torch.save({"format": "sparsedet-checkpoint", "format_version": 1, "x": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"got a file that would run code when it is read\. Nothing was run"):
        load_checkpoint(path)
    assert not Path("evil").exists()
    torch.save({"format": "sparsedet-checkpoint", "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="expected format version 1 or older, got 99"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"a": torch.zeros(1000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["a"].abs().sum() > 0
    with pytest.raises(CheckpointError, match=r"got an unreadable file \(the sum of 'archive/data/0' is wrong\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_numbers_beside_the_weights_are_not_read(module, tmp_path, monkeypatch):
    monkeypatch.setattr(np._core.multiarray.scalar, "__module__", module, raising=False)
    torch.save({"model": {"a": torch.ones(2)}, "metric_val": np.float64(0.4), "iter": 3}, tmp_path / "best.pth")
    assert f"{module} scalar".encode() in (tmp_path / "best.pth").read_bytes().replace(b"\n", b" ")
    content = read_file(tmp_path / "best.pth")
    assert content["model"]["a"].tolist() == [1, 1]
    assert content["iter"] == 3
    assert not isinstance(content["metric_val"], np.float64)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run: expected a folder that can be written, got 'Not a directory'"):
        writable_folder(tmp_path / "file" / "run")


def test_unknown_device_is_a_clear_error():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device: expected an available device, got 'tpu7'"):
        choose_device("tpu7")


def test_start_makes_random_numbers_repeat_and_flushes_denormals():
    start(5, torch.device("cpu"))
    first = torch.rand(3)
    start(5, torch.device("cpu"))
    assert torch.equal(first, torch.rand(3))
    assert float(torch.tensor([1e-42]) * 1.0) == 0.0


def test_hash_does_not_depend_on_key_order():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1}) != hash_json({"a": 1, "b": [2, 1]})


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive at `path` again, its entries changed, with right sums."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(content))


def test_archives_that_unpack_to_more_than_they_are_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    rewritten(path, lambda content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**4
    with pytest.raises(CheckpointError, match=r"got an unreadable file \(it is compressed\)"):
        read_file(path)
    torch.save({"a": torch.zeros(10)}, path)
    rewritten(path, lambda content: content)
    read_file(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
    content[place + 20 : place + 28] = struct.pack("<II", 10**6, 10**6)  # sizes of the first entry
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="got an unreadable file"):
        read_file(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1).expand(2**20, 2**20), "its tensors claim to be 4398046511104 bytes"),
        ([torch.zeros(1).expand(2**24)] + [torch.zeros(1).expand(2**24) for _ in range(9)], "claim to be"),
        (torch.zeros(3, device="meta"), "sparse, quantized, nested or without values"),
        ({"deep": [{"er": (torch.eye(3).to_sparse(),)}]}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_refused(value, reason, tmp_path):
    torch.save({"a": value}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"got an unreadable file.*{reason}"):
        read_file(tmp_path / "c.pt")


def test_what_holds_itself_many_times_is_looked_at_once(tmp_path):
    value = [torch.zeros(1)]
    for _ in range(60):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "c.pt")
    read_file(tmp_path / "c.pt")


@pytest.mark.parametrize("version", [None, "1", {}])
def test_a_version_that_is_none_is_refused(version, tmp_path):
    torch.save({"format": "sparsedet-checkpoint", "format_version": version}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="expected format version 1 or older"):
        load_checkpoint(tmp_path / "c.pt")


def test_no_link_is_followed_while_writing(tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ("f", "f.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "f", lambda stream: stream.write(b"new"))
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "f").read_bytes() == b"new"
