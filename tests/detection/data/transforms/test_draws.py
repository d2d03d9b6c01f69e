import pytest
import torch

from sparsedet.detection.data.transforms.draws import happens, integer, uniform


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_happens(probability, expected):
    torch.manual_seed(0)
    assert sum(happens(probability) for _ in range(1000)) == pytest.approx(expected, abs=40 if expected == 250 else 0)


def test_uniform_covers_its_range():
    torch.manual_seed(0)
    values = [uniform(-2, 6) for _ in range(1000)]
    assert -2 <= min(values) < -1.9
    assert 5.9 < max(values) < 6
    assert sum(values) / 1000 == pytest.approx(2, abs=0.3)


def test_integer_includes_both_ends():
    torch.manual_seed(0)
    assert {integer(3, 5) for _ in range(100)} == {3, 4, 5}
    assert integer(7, 7) == 7
