"""The whole report as one HTML file that needs nothing else: pictures are inside it as data."""

import base64
from importlib import resources

import jinja2

from sparsedet.report.curves import training_curves
from sparsedet.report.pictures import MIN_SCORE, experiments_with_strips, sample_strips, to_jpeg
from sparsedet.report.plots import ap_against_macs, ap_against_sparsity, layer_sparsity, to_svg
from sparsedet.report.run import Run
from sparsedet.report.tables import detail_table, environments, notes, origin_table, published_tables


def to_html(run: Run) -> str:
    """Return the report as self-contained HTML.

    Raises:
        ConfigError: a JSON file of the run is damaged.
        DatasetError: a sample image is missing or cannot be read.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("sparsedet.report").joinpath("template.html").read_text(encoding="utf-8")
    curves = {experiment.name: training_curves(experiment) for experiment in run.experiments}
    heat_maps = {experiment.name: layer_sparsity(experiment) for experiment in run.experiments}
    return environment.from_string(template).render(
        title=run.title,
        tables=published_tables(run),
        details=detail_table(run),
        origin=origin_table(run),
        notes=notes(run),
        environments=environments(run),
        plots={
            "AP against sparsity": _svg_uri(to_svg(ap_against_sparsity(run))),
            "AP against MACs kept": _svg_uri(to_svg(ap_against_macs(run))),
        },
        curves={name: _svg_uri(to_svg(figure)) for name, figure in curves.items() if figure is not None},
        layers={name: _svg_uri(to_svg(figure)) for name, figure in heat_maps.items() if figure is not None},
        strips={
            experiment.name: {
                image_id: _data_uri("image/jpeg", to_jpeg(strip)) for image_id, strip in sample_strips(run, experiment)
            }
            for experiment in experiments_with_strips(run)
        },
        min_score=MIN_SCORE,
    )


def _svg_uri(svg: bytes) -> str:
    return _data_uri("image/svg+xml", svg)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
