"""The pictures of a run as files."""

from pathlib import Path

from sparsedet.report.curves import training_curves
from sparsedet.report.pictures import experiments_with_strips, sample_strips, to_jpeg
from sparsedet.report.plots import ap_against_macs, ap_against_sparsity, layer_sparsity, to_png, to_svg
from sparsedet.report.run import Run


def draw_files(run: Run) -> dict[Path, bytes]:
    """Return the content of every picture file by its path; see `sparsedet.report.write_report`.

    Raises:
        ConfigError: a JSON file of the run is damaged.
        DatasetError: a sample image is missing or cannot be read.
    """
    files = {}
    for name, figure in (("ap_vs_sparsity", ap_against_sparsity(run)), ("ap_vs_macs", ap_against_macs(run))):
        files[run.folder / f"{name}.png"] = to_png(figure)
        files[run.folder / f"{name}.svg"] = to_svg(figure)
    for experiment in run.experiments:
        curves = training_curves(experiment)
        if curves is not None:
            files[experiment.folder / "training.png"] = to_png(curves)
        heat_map = layer_sparsity(experiment)
        if heat_map is not None:
            files[experiment.folder / "layers.png"] = to_png(heat_map)
    for experiment in experiments_with_strips(run):
        for image_id, strip in sample_strips(run, experiment):
            files[experiment.folder / f"strip-{image_id}.jpg"] = to_jpeg(strip)
    return files
