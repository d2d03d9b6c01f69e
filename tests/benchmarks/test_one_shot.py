"""Criteria before fine-tuning: obc, which makes up for what goes, has to beat magnitude."""

import pytest


@pytest.mark.slow
def test_obc_beats_magnitude_at_equal_sparsity(run):
    table, results = run("one_shot", "--seeds", "2", "--epochs", "8", "--levels", "0.8", "2:4")
    assert len(table) == 1 + 2 * 5 + 2
    dense, *rows = [row for row in results if row["seed"] == 1]
    assert dense["accuracy"] > 0.95
    assert len(rows) == 2 * 5
    by_level = {level: {row["criterion"]: row for row in rows if row["level"] == level} for level in ("0.8", "2:4")}
    assert by_level["2:4"]["magnitude"]["measured_sparsity"] == pytest.approx(0.5, abs=0.01)
    for level in by_level.values():
        assert len({row["measured_sparsity"] for row in level.values()}) == 1
        assert level["obc"]["loss"] < 0.7 * level["magnitude"]["loss"]
        assert level["obc"]["loss_bn"] < level["magnitude"]["loss_bn"] < level["random"]["loss_bn"]
        assert level["magnitude"]["loss_bn"] < 0.9 * level["magnitude"]["loss"]  # re-estimation helps
    assert by_level["0.8"]["magnitude"]["measured_sparsity"] == pytest.approx(0.8, abs=1e-4)
