"""The HTML report is one file, asks nobody for anything, and shows text as text."""

import re
from html.parser import HTMLParser

import pytest

from sparsedet.report.html import to_html
from sparsedet.report.run import load_run

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects what the tests ask for, and that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture
def page(run_dir) -> Page:
    return Page(to_html(load_run(run_dir)))


def test_everything_is_there(page):
    assert page.headings == [
        "Digits",
        "Level-wise pruning", "small models",
        "2:4", "small models",
        "Accuracy against cost",
        "All levels",
        "Sparsity per layer",
        "Detections on validation images", "lamp", "energy", "ampere",
        "Origin of the numbers",
    ]  # fmt: skip
    kinds = [source.split(",")[0] for source in page.sources]
    assert kinds == ["data:image/svg+xml;base64"] * (2 + 3) + ["data:image/jpeg;base64"] * 3


def test_tables_hold_the_cells(page):
    label = "retinanet (r18, bs=8*16, epoch=2*12)"
    assert page.rows[:5] == [
        ["Network(config)/sparsity", "dense", "30%", "90%"],
        [f"{label}, lamp", "61.2", "60.0", "55.0"],
        [f"{label}, energy", "61.2", "58.0", ""],
        ["Network(config)/sparsity", "dense", "50%"],
        [label, "61.2", "60.5"],
    ]
    assert ["dense", "1 of 1", "from scratch", "", "0", "c0ffee", "da7a"] in page.rows


def test_nothing_is_requested_from_elsewhere(run_dir):
    text = to_html(load_run(run_dir))
    assert all(source.startswith("data:") for source in Page(text).sources)
    outside = re.sub(r"data:[\w/+]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link", outside)
    assert "default-src 'none'" in text


def test_hostile_text_is_shown_and_not_run(tmp_path, make):
    hostile = "<script>alert('x')</script>&amp;\"><img src=x>"
    make.suite(tmp_path, "lamp", title=hostile, lamp={"family": hostile, "label": hostile})
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, initial_weights=hostile, environment={"x": hostile}))
    text = to_html(load_run(tmp_path))
    page = Page(text)
    assert "script" not in page.tags
    assert page.headings[0] == page.headings[2] == page.rows[1][0] == hostile
    assert all(source.startswith("data:") for source in page.sources)


def test_notes_environment_and_threshold_are_told(run_dir):
    text = to_html(load_run(run_dir))
    assert "Environment of dense, lamp, energy, ampere: torch 2.9, device cpu, flush_denormal True." in text
    assert "Not finished, so that cells are empty or show …: energy." in text
    assert "image 7, scores of at least 0.3" in text


def test_suite_that_has_just_started(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp")
    page = Page(to_html(load_run(tmp_path)))
    assert page.headings == ["Digits", "Accuracy against cost", "All levels", "Origin of the numbers"]
    assert ["lamp", "pending", "", "", "", "", ""] in page.rows
