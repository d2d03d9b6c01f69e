import json

import pytest

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def checkpoint(sparsedet, tiny_recipe_text, tmp_path_factory):
    """Checkpoint of a level of a tiny run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(tiny_recipe_text)
    levels = "sparsity={schedule: {type: level_wise, levels: [0.5]}}"
    assert sparsedet("train", folder / "tiny.yaml", "--set", levels, "-o", folder / "run").returncode == 0
    return folder / "run" / "tiny" / "sparsity-0.5" / "checkpoint.pt"


def test_a_level_of_a_run_is_exported(checkpoint, sparsedet, tmp_path):
    output = tmp_path / "tiny.onnx"
    done = sparsedet("export", checkpoint, "--output", output, "--post-processing", "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about == json.loads((tmp_path / "tiny.json").read_text())
    assert about["has_post_processing"]
    assert about["sparsity"]["all"] == pytest.approx(0.5, abs=1e-4)
    again = sparsedet("export", checkpoint, "--output", output)
    assert again.returncode == 2
    assert (
        f"error: {output}: expected a new file, got one that exists. Choose another name, or use --force."
        in again.stderr
    )
    done = sparsedet("verify", output)
    assert done.returncode == 0, done.stderr


def test_a_fault_is_exit_code_1(checkpoint, sparsedet, tmp_path, monkeypatch):
    from sparsedet.benchmark import onnx_compare

    monkeypatch.setattr(onnx_compare, "TOLERANCES", {False: (-1.0, -1.0)})
    done = sparsedet("export", checkpoint, "-o", tmp_path / "tiny.onnx", "--no-slim", "--input-shape", "1,3,64,96")
    assert done.returncode == 1
    assert f"written: {tmp_path / 'tiny.onnx'}" in done.stdout
    assert "fault: cls_logits_3: expected PyTorch's values within -1 of the largest, got" in done.stdout
    assert "verified" not in done.stdout


def test_a_bad_shape_is_one_message(checkpoint, sparsedet, tmp_path):
    done = sparsedet("export", checkpoint, "-o", tmp_path / "tiny.onnx", "--input-shape", "480x640")
    assert done.returncode == 2
    assert "error: --input-shape: expected B,3,H,W, got '480x640'. Write for example 1,3,480,640." in done.stderr
