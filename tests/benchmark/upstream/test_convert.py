"""Checkpoints written with United-Perception's names, against its own lists of names, and read back."""

import json
from pathlib import Path

import pytest
import torch

from sparsedet.benchmark.checkpoint import build_detector
from sparsedet.benchmark.upstream.convert import convert_checkpoint
from sparsedet.common.errors import CheckpointError, StorageError

GOLDEN = Path(__file__).parent / "golden"
KEYS = {  # of the same networks at full size; a smaller C1 has fewer convolutions
    "C2": "retinanet_r18_improve",
    "C3": "retinanet_r18_improve_cos_iou",
    "C4": "faster_rcnn_r50_fpn_improve",
}
SPARSE_KEYS = {"C2": "sparse_retinanet_r18_improve_ampere", "C4": "sparse_faster_rcnn_r50_fpn_ampere"}


@pytest.mark.parametrize("sparse_prefix", [False, True])
@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4"])
def test_what_is_written_has_their_names_and_reads_back_to_the_same_bits(
    name, sparse_prefix, small_detectors, recipe_of, build, save, assert_same, categories, tmp_path
):
    source = build(small_detectors[name], 0)
    with torch.no_grad():
        source.backbone.conv1.weight[0] = -0.0
    save(tmp_path / "ours.pt", recipe_of(small_detectors[name], {"num_train_images": 9}), source)
    convert_checkpoint(tmp_path / "ours.pt", tmp_path / "up.pth", sparse_prefix)
    content = torch.load(tmp_path / "up.pth", weights_only=True)
    assert (content["iter"], content["epoch"]) == (7, 2)  # seven steps of two out of nine images
    golden = (SPARSE_KEYS if sparse_prefix else KEYS).get(name)
    if golden:
        rows = json.loads((GOLDEN / f"golden_{golden}_keys.json").read_text())["keys"]
        assert sorted(content["model"]) == sorted(row["key"] for row in rows)
    recipe = recipe_of(small_detectors[name], initial_checkpoint=tmp_path / "up.pth")
    assert_same(build_detector(recipe, categories)[0], source)


def test_the_epoch_is_left_out_where_the_number_of_images_is_unknown(small_detectors, recipe_of, build, save, tmp_path):
    save(tmp_path / "ours.pt", recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    convert_checkpoint(tmp_path / "ours.pt", tmp_path / "up.pth")
    assert set(torch.load(tmp_path / "up.pth", weights_only=True)) == {"model", "iter"}


def test_an_existing_file_is_only_replaced_by_force_and_by_a_whole_one(
    small_detectors, recipe_of, build, save, tmp_path, monkeypatch
):
    ours, out = tmp_path / "ours.pt", tmp_path / "up.pth"
    save(ours, recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    out.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"up.pth: expected a new file, got one that exists\. Choose another name"):
        convert_checkpoint(ours, out)
    with monkeypatch.context() as patch:

        def fail(content, stream):
            stream.write(b"half")
            raise OSError("disk full")

        patch.setattr(torch, "save", fail)
        with pytest.raises(StorageError, match=r"up.pth: expected to write the file, got 'disk full'"):
            convert_checkpoint(ours, out, force=True)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.pt", "up.pth"]
    convert_checkpoint(ours, out, force=True)
    assert torch.load(out, weights_only=True)["iter"] == 7


def test_only_checkpoints_of_sparsedet_are_converted(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"theirs.pth: expected a file written by sparsedet, got another program"):
        convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "up.pth")
    assert not (tmp_path / "up.pth").exists()
