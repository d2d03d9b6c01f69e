import pytest


def test_a_classifier_and_the_detector_are_trained_dense_and_sparse(run):
    arguments = ("--cases", "resnet18", "detector", "--rounds", "2", "--batch-size", "2", "--image-size", "32")
    table, results = run("step_overhead", *arguments)
    assert len(table) == 2 + 2  # head, line, two rows
    assert [result["case"] for result in results] == ["resnet18", "detector"]
    assert [result["measured_sparsity"] for result in results] == pytest.approx([0.5, 0.9], abs=1e-5)
    for result in results:
        assert result["cpu_ratio"]["median"] > 0
        assert result["weights_cpu_share"] > 0
        assert result["gradients_cpu_share"] > 0
