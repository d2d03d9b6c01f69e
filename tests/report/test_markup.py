"""The text formats, against documents written by hand and parsers that share no code with the writers."""

import csv
import io
import itertools
import unicodedata

import pytest
from docutils import core

from sparsedet.report.markup import to_csv, to_md, to_rst
from sparsedet.report.run import load_run

PUBLISHED_RST = """\
Level-wise pruning
==================

small models
------------

+----------------------------------------------+-------+------+------+
| Network(config)/sparsity                     | dense | 30%  | 90%  |
+==============================================+=======+======+======+
| retinanet (r18, bs=8*16, epoch=2*12), lamp   | 61.2  | 60.0 | 55.0 |
+----------------------------------------------+-------+------+------+
| retinanet (r18, bs=8*16, epoch=2*12), energy | 61.2  | 58.0 |      |
+----------------------------------------------+-------+------+------+

2:4
===

small models
------------

+--------------------------------------+-------+------+
| Network(config)/sparsity             | dense | 50%  |
+======================================+=======+======+
| retinanet (r18, bs=8*16, epoch=2*12) | 61.2  | 60.5 |
+--------------------------------------+-------+------+

All levels
==========

+------------+-----------+-----------+"""

PUBLISHED_MD = r"""## Level-wise pruning

### small models

| Network(config)/sparsity | dense | 30% | 90% |
|---|---|---|---|
| retinanet (r18, bs=8\*16, epoch=2\*12), lamp | 61.2 | 60.0 | 55.0 |
| retinanet (r18, bs=8\*16, epoch=2\*12), energy | 61.2 | 58.0 |  |

## 2:4

### small models

| Network(config)/sparsity | dense | 50% |
|---|---|---|
| retinanet (r18, bs=8\*16, epoch=2\*12) | 61.2 | 60.5 |

## All levels

| experiment | asked | allocated |"""

ORIGIN_RST = """
Origin of the numbers
=====================

+------------+--------+-----------------+------------+------+-------------+-----------+
| experiment | levels | initial weights | allocation | seed | config hash | data hash |
+============+========+=================+============+======+=============+===========+
| dense      | 1 of 1 | from scratch    |            | 0    | c0ffee      | da7a      |
+------------+--------+-----------------+------------+------+-------------+-----------+
| lamp       | 2 of 2 | from scratch    | lamp       | 0    | c0ffee      | da7a      |
+------------+--------+-----------------+------------+------+-------------+-----------+
| energy     | 1 of 2 | from scratch    | energy     | 0    | c0ffee      | da7a      |
+------------+--------+-----------------+------------+------+-------------+-----------+
| ampere     | 1 of 1 | from scratch    |            | 0    | c0ffee      | da7a      |
+------------+--------+-----------------+------------+------+-------------+-----------+
"""

HOSTILE = r"a|b *c* `d` e_ |f| <script> \g 数据 x_y [1]_"


def grids(text: str) -> list[list[list[str]]]:
    """Parse the grid tables of a document; bars must stand under the corners of the first border."""
    tables, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith(("+", "|")):
            current.append(line)
        elif current:
            tables.append(parse_grid(current))
            current = []
    return tables


def columns_of(line: str) -> str:
    """Stretch wide characters to the two columns they take on a screen."""
    return "".join(c + ("\0" if unicodedata.east_asian_width(c) in "WF" else "") for c in line)


def parse_grid(lines: list[str]) -> list[list[str]]:
    corners = [index for index, character in enumerate(lines[0]) if character == "+"]
    assert set(lines[0]) == {"+", "-"}
    assert [line[0] for line in lines] == ["+", "|"] * (len(lines) // 2) + ["+"]
    assert [index for index, line in enumerate(lines) if set(line) == {"+", "="}] == [2]
    rows = []
    for line in map(columns_of, lines):
        assert len(line) == len(lines[0])
        assert all(line[corner] in "+|" for corner in corners)
        if line[0] == "+":
            assert [index for index, character in enumerate(line) if character == "+"] == corners
        else:
            cells = [line[left + 1 : right] for left, right in itertools.pairwise(corners)]
            assert all(cell.startswith(" ") and cell.endswith(" ") for cell in cells)
            rows.append([cell.replace("\0", "").strip() for cell in cells])
    return rows


def test_rst_is_first_the_published_layout(run_dir):
    text = to_rst(load_run(run_dir))
    assert text.startswith(PUBLISHED_RST)
    assert ORIGIN_RST in text
    assert text.endswith("- Environment of dense, lamp, energy, ampere: torch 2.9, device cpu, flush_denormal True.\n")


def test_rst_grids_are_aligned(run_dir):
    tables = grids(to_rst(load_run(run_dir)))
    assert [(len(table), len(table[0])) for table in tables] == [(3, 4), (2, 3), (6, 17), (5, 7)]
    assert tables[2][5][-2:] == ["60.0", "+0.5"]


def test_rst_is_what_docutils_reads(run_dir, make, tmp_path):
    make.suite(tmp_path, "dense", "lamp", dense={"label": HOSTILE}, lamp={"label": HOSTILE})
    make.add(tmp_path, make.record(), make.level("lamp", 0, 0.3, 0.6, 0.7))
    strict = {"halt_level": 2, "report_level": 2}  # 1 only notes that a family heading stands under both schedulers
    assert "<table" in core.publish_string(to_rst(load_run(run_dir)), writer="html", settings_overrides=strict).decode()
    tree = core.publish_doctree(to_rst(load_run(tmp_path)), settings_overrides=strict)
    assert HOSTILE in tree.astext()


def test_rst_escapes_markup_and_counts_wide_characters(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp", dense={"label": HOSTILE}, lamp={"label": HOSTILE, "family": "*x*\ny"})
    make.add(tmp_path, make.record(), make.level("lamp", 0, 0.3, 0.6, 0.7))
    text = to_rst(load_run(tmp_path))
    assert grids(text)[0][1] == [r"a|b \*c* \`d\` e\_ \|f| <script> \\g 数据 x_y [1]\_", "61.2", "60.0"]
    assert "\n\n\\*x* y\n------\n\n" in text


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("- a", r"\- a"),
        (".. image:: x", r"\.. image:: x"),
        ("1. a", r"\1. a"),
        ("(b) a", r"\(b) a"),
        ("x__", r"x\_\_"),
        ("2*3", "2*3"),
        (
            "retinanet-improve (resnet18, bs=8*16, epoch=7*12)",
            "retinanet-improve (resnet18, bs=8*16, epoch=7*12)",
        ),
    ],
)
def test_rst_labels_that_look_like_blocks(tmp_path, make, label, expected):
    make.suite(tmp_path, "lamp", lamp={"label": label})
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    assert grids(to_rst(load_run(tmp_path)))[0][1][0] == expected


def test_differences_are_not_escaped(tmp_path, make):
    make.suite(tmp_path, "a", "b")
    make.add(
        tmp_path,
        make.level("a", 0, 0.3, 0.6, 0.7, published_ap=0.5),
        make.level("b", 0, 0.3, 0.4, 0.7, published_ap=0.5),
    )
    assert [row[-1] for row in grids(to_rst(load_run(tmp_path)))[1][1:]] == ["+10.0", "-10.0"]


def test_markdown(run_dir):
    assert to_md(load_run(run_dir)).startswith(PUBLISHED_MD)


def test_markdown_escapes(tmp_path, make):
    make.suite(tmp_path, "lamp", lamp={"label": HOSTILE})
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    row = r"| a\|b \*c\* \`d\` e\_ \|f\| \<script\> \\g 数据 x_y \[1\]\_ |  | 60.0 |"
    assert row in to_md(load_run(tmp_path)).splitlines()


def test_csv_has_a_line_per_record_with_all_fields_in_their_own_units(run_dir):
    rows = list(csv.DictReader(io.StringIO(to_csv(load_run(run_dir)))))
    assert [row["experiment"] for row in rows] == ["dense", "lamp", "lamp", "energy", "ampere"]
    last = rows[2]
    assert last["label"] == "retinanet (r18, bs=8*16, epoch=2*12)"
    assert (last["target_sparsity"], last["measured_sparsity"], last["macs_kept"]) == ("0.9", "0.899", "0.29")
    assert (last["metrics.ap"], last["metrics.ar_large"], last["environment.device"]) == (
        "0.5504",
        "-1.0",
        "cpu",
    )
    assert (last["published_ap"], rows[4]["published_ap"]) == ("", "0.6")


def test_csv_quotes_what_needs_it(tmp_path, make):
    make.suite(tmp_path, "lamp")
    label = 'a, "b"\nc'
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, label=label))
    (row,) = csv.DictReader(io.StringIO(to_csv(load_run(tmp_path)), newline=""))
    assert row["label"] == label


def test_run_without_records_has_only_the_state(tmp_path, make):
    make.suite(tmp_path, "dense")
    text = to_rst(load_run(tmp_path))
    assert text.startswith("Origin of the numbers\n")
    assert grids(text)[0][1] == ["dense", "pending", "", "", "", "", ""]
    assert to_csv(load_run(tmp_path)) == "\n"


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", " =1"])
def test_csv_holds_no_formula(tmp_path, make, label):
    make.suite(tmp_path, "lamp")
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, label=label, metrics={"ap": -1.0}, environment={"=x": "y"}))
    (row,) = csv.DictReader(io.StringIO(to_csv(load_run(tmp_path)), newline=""))
    assert row["label"] == f"'{label}"
    assert row["metrics.ap"] == "-1.0"


@pytest.mark.parametrize("to_text", [to_rst, to_md, to_csv])
def test_text_holds_nothing_that_a_terminal_acts_on(tmp_path, make, to_text):
    hostile = "a\x1b[2J\rb\u202e"
    make.suite(tmp_path, "lamp", title=hostile, lamp={"family": hostile, "label": hostile})
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, label=hostile, initial_weights=hostile))
    text = to_text(load_run(tmp_path))
    assert "x1b" in text
    assert all(line.isprintable() for line in text.split("\n"))
