import pytest

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.findings import Findings, printable, shorten


def test_findings_are_counted_by_kind_and_told_in_the_order_of_the_table():
    findings = Findings("a.json")
    for number in range(10):
        findings.count("box-clipped", f"annotation {number}")
    findings.count("image-empty", "image 1", image_id=1)
    findings.count("image-rotated", "a.jpg")
    assert [(found.kind, found.count, len(found.examples)) for found in findings.found] == [
        ("image-rotated", 1, 1),
        ("image-empty", 1, 1),
        ("box-clipped", 10, 8),
    ]
    assert [warning.split(": ")[1][:9] for warning in findings.warnings] == ["1 x image", "10 x box "]
    assert findings.warnings[1].endswith("(annotation 0, annotation 1, annotation 2, …)")
    findings.raise_faults()


def test_faults_are_raised_with_their_message():
    findings = Findings("a.json")
    findings.fault("box-invalid", "annotation 1", "a box", "x" * 1000, "Correct it.", image_id=3)
    with pytest.raises(DatasetError) as raised:
        findings.raise_faults()
    assert str(raised.value) == f"a.json: annotation 1: expected a box, got {'x' * 200}…. Correct it."
    assert findings.found[0].examples[0].text == "annotation 1"
    assert findings.found[0].examples[0].image_id == 3


def test_an_unknown_kind_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="box-cliped"):
        Findings("a.json").count("box-cliped", "annotation 1")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("图像 é.jpg", "图像 é.jpg"),
        ("\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("\ud800", "\\ud800"),
        ([1, None], "[1, None]"),
        ("y" * 201, "y" * 200 + "…"),
    ],
)
def test_values_of_files_are_made_safe_to_print(value, text):
    assert printable(value) == text


def test_an_integer_that_python_does_not_write():
    assert printable(10**5000) == "an integer of thousands of digits"


def test_shorten():
    assert shorten(["a", "b\n", 3], 2) == "a, b\\n, …"
