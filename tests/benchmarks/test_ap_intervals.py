import pytest


def test_cost_and_coverage(run):
    small = ("--images", 20, "--detections", 10, "--classes", 3, "--sets", 4, "--set-images", 10, "--resamples", 20)
    table, (cost, ap, lost) = run("ap_intervals", *map(str, small))
    assert len(table) == 3 + 1 + 4
    assert cost["what"].startswith("20 images, ")
    for row in ap, lost:
        assert row["coverage"] * 4 == pytest.approx(round(row["coverage"] * 4))
        assert 0 < row["standard_deviation_bootstrap"] < 0.3
    assert 0 < lost["mean"] < ap["mean"] < 1
