import math

import pytest

from sparsedet.detection.data.entries import as_bbox, escape_in, is_a, is_number


@pytest.mark.parametrize(
    ("name", "escape"),
    [
        ("a.jpg", None),
        ("train/a.jpg", None),
        ("..a/b..jpg", None),
        ("图像 é.jpg", None),
        ("a b\\c.jpg", None),
        ("/a.jpg", "an absolute path"),
        ("\\a.jpg", "an absolute path"),
        ("C:/a.jpg", "an absolute path"),
        ("c:a.jpg", "an absolute path"),
        ("\\\\server\\share\\a.jpg", "an absolute path"),
        ("..", "a path with '..'"),
        ("a/../b.jpg", "a path with '..'"),
        ("a\\..\\b.jpg", "a path with '..'"),
        ("a.jpg\0.png", "a path with a null character"),
    ],
)
def test_names_that_lead_out_of_a_folder_on_any_system(name, escape):
    assert escape_in(name) == escape


@pytest.mark.parametrize(
    ("value", "expected", "fine"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (2**63 - 1, int, True),
        (2**63, int, False),
        (-(2**63), int, False),
        ("a", str, True),
        ("a\udc80", str, False),
        (None, str, False),
        ([], list, True),
    ],
)
def test_is_a(value, expected, fine):
    assert is_a(value, expected) == fine


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 10**400])
def test_no_numbers(value):
    assert not is_number(value)
    assert as_bbox([1, value, 2, 3]) is None


@pytest.mark.parametrize("value", [0, -1, 1.5, 2**60])
def test_numbers(value):
    assert is_number(value)
    assert as_bbox([1, value, 2, 3]) == (1, value, 2, 3)


@pytest.mark.parametrize("value", [None, {}, [], [1, 2, 3], [1, 2, 3, 4, 5], "1234"])
def test_no_boxes(value):
    assert as_bbox(value) is None
