import pytest

NUM_PARAMETERS, NUM_BIASES, NUM_STEM = 1_235_496, 3_944, 64 * 3 * 9  # of SqueezeNet 1.1, all convolutions


def test_every_form_of_every_level_is_written(run):
    table, results = run("file_sizes", "--networks", "squeezenet1_1", "--rounds", "1")
    assert len(table) == len(results) + 2
    assert [result["level"] for result in results] == ["0", "0.5", "2:4", "0.8", "0.9"]
    num_weights = NUM_PARAMETERS - NUM_BIASES
    for result, share in zip(results, (0.0, 0.5, 0.5, 0.8, 0.9), strict=True):
        num_pruned = share * (num_weights - (NUM_STEM if result["level"] == "2:4" else 0))
        expected = (NUM_PARAMETERS - num_pruned) * 4 + (num_weights / 8 if share else 0)
        assert result["size_bytes_dense"] == 4 * NUM_PARAMETERS
        assert result["size_bytes, fp32"] == pytest.approx(expected, abs=20_000)  # the rest is the header
        assert result["size_bytes, fp16"] == pytest.approx(
            expected / 2 + (num_weights / 16 if share else 0), abs=25_000
        )
        assert result["size_bytes, fp16, zstd"] < result["size_bytes, fp16"]
        assert result["size_bytes, fp32, zstd"] < result["size_bytes, fp32"]
