import json
import re

import torch

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.suite import load_suite, run_suite


def test_a_pruned_checkpoint_is_converted_and_a_run_starts_from_it(sparsedet, tiny_recipe, tmp_path):
    levels = ("sparsity={schedule: {type: level_wise, levels: [0.5]}}",)
    run_suite(load_suite(tiny_recipe, levels), tmp_path / "run", "cpu", Console(quiet=True))
    ours, out = tmp_path / "run" / "tiny" / "sparsity-0.5" / "checkpoint.pt", tmp_path / "up.pth"
    assert sparsedet("checkpoint", "convert", ours, out, "--sparse-prefix")[:2] == (0, f"written: {out}\n")
    weights = torch.load(out, weights_only=True)["model"]
    saved = torch.load(ours, weights_only=True)["model"]
    key = "backbone.layer1.0.conv1.weight"
    assert torch.equal(weights[f"backbone_neck_roi_head.{key}"], saved[key])
    assert (saved[key] == 0).any()
    code, _, err = sparsedet("checkpoint", "convert", ours, out)
    assert code == 2
    assert f"error: {out}: expected a new file, got one that exists. Choose another name, or use --force." in err
    assert sparsedet("checkpoint", "convert", ours, out, "--force")[0] == 0
    assert torch.equal(torch.load(out, weights_only=True)["model"][key], saved[key])
    start = ("--set", f"initial_checkpoint={out}", "--set", "training.steps=1", "-o", tmp_path / "again")
    code, _, err = sparsedet("train", tiny_recipe, *start)
    assert code == 0
    assert "tiny: initial weights: up.pth\n" in err
    counts = f"{len(saved)} loaded, 0 missing, 0 reinitialised, 0 unexpected"
    assert f"tiny: initial weights: {counts} (0.00% of the values keep their fresh initialisation)\n" in err


def test_weights_are_made_compact_evaluated_verified_and_restored(sparsedet, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    levels = ("sparsity={schedule: {type: level_wise, levels: [0.8]}}",)
    (record,) = run_suite(load_suite(tiny_recipe, levels), tmp_path / "run", "cpu", Console(quiet=True))
    level = tmp_path / "run" / "tiny" / "sparsity-0.8"
    assert record.size_bytes_sparse == (level / "weights.safetensors").stat().st_size
    done = sparsedet("checkpoint", "compact", level / "checkpoint.pt", "-o", "w.safetensors", "--json")
    sizes = json.loads(done.stdout)
    assert sizes == {"size_bytes_dense": record.size_bytes_dense, "size_bytes_sparse": record.size_bytes_sparse}
    assert (tmp_path / "w.safetensors").read_bytes() == (level / "weights.safetensors").read_bytes()
    metrics = json.loads(sparsedet("eval", "w.safetensors", "--json").stdout)
    assert {name: metrics[name] for name in record.metrics} == record.metrics
    assert sparsedet("verify", "w.safetensors").returncode == 0
    half = sparsedet("checkpoint", "compact", "w.safetensors", "-o", "half.safetensors", "--fp16", "--zstd")
    assert re.fullmatch(
        r"written: half.safetensors: 0\.\d+ MB; the weights are 0\.\d+ MB, \d\.\d\d times as much\n", half.stdout
    )
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * record.size_bytes_sparse
    assert sparsedet("checkpoint", "restore", "half.safetensors", "-o", "half.pt")[:2] == (0, "written: half.pt\n")
    done = sparsedet("verify", "half.pt", "--against", level / "checkpoint.pt")
    assert done.returncode == 0
    assert done.stdout.endswith(f"verified: the weights are what {level / 'checkpoint.pt'} says\n")
    rows = json.loads(sparsedet("analyze", "w.safetensors", "--json").stdout)
    assert {row["chosen"] for row in rows} == {True}
    state = torch.load("half.pt", weights_only=True)
    state["backbone.conv1.weight"] += 1
    torch.save(state, "half.pt")
    done = sparsedet("verify", "half.pt", "--against", "w.safetensors", "--json")
    assert done.returncode == 1
    assert "backbone.conv1.weight: expected zero at" in json.loads(done.stdout)["faults"][0]
    done = sparsedet("verify", "half.pt", "--against", "gone.safetensors")
    assert done[:2] == (2, "")
    assert "gone.safetensors: expected a safetensors file, got nothing" in done.stderr
    done = sparsedet("checkpoint", "compact", "w.safetensors", "-o", "half.safetensors")
    assert done.returncode == 2
    assert "expected a new file, got one that exists" in done.stderr


def test_what_tensorrt_can_do_is_said(sparsedet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight = torch.ones(256, 256)
    weight[:, ::2] = 0
    torch.save({"large": weight, "small": weight[:8], "dense": torch.ones(8, 8)}, "net.pt")
    done = sparsedet("tensorrt", "net.pt")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[4:7] == [
        "valid 2:4 and large: 1 of 3 layers",
        "valid 2:4, not large: 1 of 3 layers",
        "not 2:4: 1 of 3 layers",
    ]
    assert lines[7].startswith("no speed is claimed; nothing was run")
    assert lines[8].startswith("the command is for its export")
    assert lines[9].startswith("trtexec --onnx=net.onnx ")
    picked = "[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers:"
    (tmp_path / "log").write_text(f"[I] [TRT] (Sparsity) Layers eligible for sparse math: a, b\n{picked} b\n")
    done = sparsedet("tensorrt", "net.pt", "--log", "log")
    assert "TensorRT found 2 layers eligible, and runs a sparse kernel in 1:\n  b\n" in done.stdout
    result = json.loads(sparsedet("tensorrt", "net.pt", "--log", "log", "--json").stdout)
    assert [layer["state"] for layer in result["layers"]] == ["large", "valid", "no"]
    assert result["log"] == {"eligible": ["a", "b"], "picked": ["b"]}
    assert result["command"] == lines[9]
