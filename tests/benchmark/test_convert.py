"""Weights from one kind of file to another."""

import pytest
import torch
from safetensors.torch import load_file

from sparsedet.benchmark.checkpoint import open_checkpoint
from sparsedet.benchmark.compact import write_compact
from sparsedet.benchmark.convert import compact, restore
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError, ConfigError, StorageError

LEVELS = {"schedule": {"type": "level_wise", "levels": (0.8, 0.9)}}


@pytest.fixture
def checkpoint(save_pruned, tmp_path):
    """Path of a checkpoint at 80 %."""
    save_pruned(tmp_path / "c.pt", LEVELS)
    return tmp_path / "c.pt"


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert all(state[name].numpy().tobytes() == value.numpy().tobytes() for name, value in expected.items())


def test_there_and_back(checkpoint, tmp_path):
    state = load_checkpoint(checkpoint)["model"]
    num_bytes = sum(value.numel() * value.element_size() for value in state.values())
    for options in ({}, {"zstd": True}):
        path = tmp_path / f"{len(options)}.safetensors"
        sizes = compact(checkpoint, path, **options)
        assert sizes == {"size_bytes_dense": num_bytes, "size_bytes_sparse": path.stat().st_size}
        assert sizes["size_bytes_sparse"] < 0.27 * num_bytes
        restore(path, tmp_path / "back.pt", force=True)
        assert_same(torch.load(tmp_path / "back.pt", weights_only=True), state)
        restore(path, tmp_path / "back.safetensors", force=True)
        assert_same(load_file(tmp_path / "back.safetensors"), state)
        restore(checkpoint, tmp_path / "back.safetensors", force=True)
        assert_same(load_file(tmp_path / "back.safetensors"), state)
    assert open_checkpoint(path).num_pruned == open_checkpoint(checkpoint).num_pruned
    write_compact(tmp_path / "level.safetensors", load_checkpoint(checkpoint), 0.8)
    assert open_checkpoint(tmp_path / "level.safetensors").recipe == open_checkpoint(path).recipe


def test_a_compact_file_is_made_smaller_still(checkpoint, tmp_path):
    compact(checkpoint, tmp_path / "w.safetensors")
    half = compact(tmp_path / "w.safetensors", tmp_path / "half.safetensors", fp16=True)
    direct = compact(checkpoint, tmp_path / "direct.safetensors", fp16=True)
    assert half == direct
    assert (tmp_path / "half.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


def test_a_state_dict_of_another_program(tmp_path):
    state = {"w": torch.ones(8, 8), "n": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pth")
    compact(tmp_path / "theirs.pth", tmp_path / "w.safetensors")
    restore(tmp_path / "w.safetensors", tmp_path / "back.pt")
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True), state)


def test_nothing_is_overwritten_and_damaged_files_leave_nothing(checkpoint, tmp_path):
    compact(checkpoint, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    for write in (lambda force: compact(checkpoint, tmp_path / "w.safetensors", force=force),
                  lambda force: restore(checkpoint, tmp_path / "w.safetensors", force=force)):  # fmt: skip
        with pytest.raises(StorageError, match=r"w\.safetensors: expected a new file, got one that exists"):
            write(False)
    assert (tmp_path / "w.safetensors").read_bytes() == before
    (tmp_path / "cut.safetensors").write_bytes(before[:-1])
    for write in (compact, restore):
        with pytest.raises(CheckpointError, match="It may be truncated or damaged"):
            write(tmp_path / "cut.safetensors", tmp_path / "w.safetensors", force=True)
        with pytest.raises(CheckpointError, match="It may be truncated or damaged"):
            write(tmp_path / "cut.safetensors", tmp_path / "new.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(ConfigError, match=r"--output: expected a file name that ends with \.safetensors, got '"):
        compact(checkpoint, tmp_path / "w.bin")
