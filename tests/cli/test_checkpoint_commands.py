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
