"""The two functions of the package: text in a format, and everything as files."""

import subprocess
import sys

import pytest

from sparsedet.common.errors import ConfigError, StorageError
from sparsedet.report import load_run, render, write_report


@pytest.mark.parametrize(
    ("format", "start"),
    [
        ("rst", "Level-wise pruning\n==="),
        ("md", "## Level-wise"),
        ("csv", "format_version,"),
        ("html", "<!doctype"),
    ],
)
def test_render(run_dir, format, start):
    assert render(run_dir, format).startswith(start)


def test_unknown_format_is_an_error(run_dir):
    with pytest.raises(ConfigError) as raised:
        render(run_dir, "htm")
    assert str(raised.value) == (
        "format: expected one of ['csv', 'html', 'md', 'rst'], got 'htm'. Did you mean 'html'? Choose one of them."
    )


def test_files_of_a_report(run_dir):
    paths = write_report(run_dir)
    assert sorted(str(path.relative_to(run_dir)) for path in paths) == [
        "ampere/layers.png", "ampere/strip-7.jpg", "ap_vs_macs.png", "ap_vs_macs.svg",
        "ap_vs_sparsity.png", "ap_vs_sparsity.svg", "energy/layers.png", "energy/strip-7.jpg",
        "lamp/layers.png", "lamp/strip-7.jpg",
        "report.html", "table.csv", "table.md", "table.rst",
    ]  # fmt: skip
    assert all(path.stat().st_size > 0 for path in paths)
    for format in ("rst", "md", "csv"):
        assert (run_dir / f"table.{format}").read_text(encoding="utf-8") == render(run_dir, format)
    assert (run_dir / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_of_a_suite_that_has_just_started(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp")
    assert len(write_report(tmp_path)) == 8


def test_report_that_cannot_be_written_is_an_error(tmp_path, make):
    make.suite(tmp_path, "dense")
    (tmp_path / "table.rst").mkdir()
    with pytest.raises(StorageError, match=r"table.rst: expected to write the file, got 'Is a directory'"):
        write_report(tmp_path)


def test_report_needs_no_torch_and_draws_only_when_asked(run_dir):
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, torchvision=None)\n"
        "import sparsedet.report\n"
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules\n"
        "from pathlib import Path\n"
        f"print(len(sparsedet.report.write_report(Path({str(run_dir)!r}))))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("14\n", "")


def test_load_run_is_public(run_dir):
    assert load_run(run_dir).title == "Digits"
