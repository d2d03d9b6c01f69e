"""Tables, plots and pictures of a run folder: rst, Markdown, CSV and one self-contained HTML file.

Reads what a run saved, also while it is still running; needs no torch.
"""

from collections.abc import Callable
from operator import methodcaller
from pathlib import Path

from sparsedet.common.errors import ConfigError, did_you_mean
from sparsedet.common.files import write_atomically
from sparsedet.report.markup import to_csv, to_md, to_rst
from sparsedet.report.record import Record, append_record, read_records
from sparsedet.report.run import Entry, Experiment, Run, Suite, load_run

# matplotlib writes a font cache when it is imported, so the functions below import it only when they draw.


def _to_html(run: Run) -> str:
    from sparsedet.report.html import to_html

    return to_html(run)


FORMATS: dict[str, Callable[[Run], str]] = {"rst": to_rst, "md": to_md, "csv": to_csv, "html": _to_html}


def render(run_dir: Path, format: str) -> str:
    """Return the report of a run folder as text.

    Args:
        run_dir: folder of a finished or still running suite or training.
        format: one of `FORMATS`.

    Raises:
        ConfigError: the format is unknown, the folder is not a run folder, or a file in it is damaged.
        DatasetError: a sample image is missing or cannot be read (html only).
    """
    if format not in FORMATS:
        raise ConfigError(
            f"format: expected one of {sorted(FORMATS)}, got '{format}'.{did_you_mean(format, FORMATS)} "
            "Choose one of them."
        )
    return FORMATS[format](load_run(run_dir))


def write_report(run_dir: Path) -> list[Path]:
    """Write the report in every format, the plots and the sample strips; return what was written.

    Into the run folder go `report.html`, `table.rst`, `table.md`, `table.csv`, and the plots `ap_vs_sparsity`
    and `ap_vs_macs` as PNG and SVG; into each experiment's folder `training.png`, `layers.png` and
    `strip-<image id>.jpg`.

    Raises:
        ConfigError: it is not a run folder, or a file in it is damaged.
        DatasetError: a sample image is missing or cannot be read.
        StorageError: a folder cannot be written.
    """
    from sparsedet.report.drawings import draw_files

    run = load_run(run_dir)
    contents = {
        run_dir / ("report.html" if name == "html" else f"table.{name}"): to_text(run).encode()
        for name, to_text in FORMATS.items()
    }
    contents |= draw_files(run)
    for path, content in contents.items():
        write_atomically(path, methodcaller("write", content))
    return list(contents)


__all__ = [
    "FORMATS", "Entry", "Experiment", "Record", "Run", "Suite",
    "append_record", "load_run", "read_records", "render", "write_report",
]  # fmt: skip
