"""Curves carry the values of the records, and files come out the same each time."""

import io
import json
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from sparsedet.common.errors import ConfigError
from sparsedet.report.plots import ap_against_macs, ap_against_sparsity, layer_losses, layer_sparsity, to_png, to_svg
from sparsedet.report.run import load_run


def lines(figure) -> dict[str, tuple[list[float], list[float], str, str]]:
    """Points, line style and marker of each line by its label, rounded as a reader would see them."""
    return {
        str(line.get_label()): (
            [round(float(x), 6) for x in line.get_xdata()],
            [round(float(y), 6) for y in line.get_ydata()],
            line.get_linestyle(),
            line.get_marker(),
        )
        for line in figure.axes[0].lines
    }


def test_ap_against_sparsity_shows_measured_values_in_percent(run_dir):
    found = lines(ap_against_sparsity(load_run(run_dir)))
    assert found == {
        "lamp": ([29.9, 89.9], [60.0, 55.04], "-", "o"),
        "energy": ([29.9], [58.0], "-", "s"),
        "ampere": ([48.8], [60.5], "None", "*"),
        "dense (61.2)": ([0.0, 1.0], [61.2, 61.2], "--", "None"),  # x in shares of the axis: the whole width
    }


def test_ap_against_macs(run_dir):
    found = lines(ap_against_macs(load_run(run_dir)))
    assert {name: points[0] for name, points in found.items()} == {
        "lamp": [74.0, 29.0],
        "energy": [70.0],
        "ampere": [61.0],
        "dense (61.2)": [0.0, 1.0],
    }


def test_axes_have_units_and_the_legend_stands_outside_of_them(run_dir):
    for draw, label in (
        (ap_against_sparsity, "sparsity, zeros in all conv/linear weights (%)"),
        (ap_against_macs, "MACs kept (% of dense)"),
    ):
        figure = draw(load_run(run_dir))
        figure.draw_without_rendering()
        (axes,) = figure.axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == (label, "AP (%)")
        (legend,) = figure.legends
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_control_has_a_line_of_its_own_and_undefined_ap_has_none(tmp_path, make):
    make.suite(tmp_path, "dense", "control", "none", "lamp")
    make.add(
        tmp_path,
        make.record(),
        make.record(experiment="control", ap=0.7),
        make.record(experiment="none", ap=-1.0),
    )
    make.add(tmp_path, make.level("lamp", 0, 0.3, -1.0, 0.7, ap_after_pruning=None))
    found = lines(ap_against_sparsity(load_run(tmp_path)))
    assert {name: points[2] for name, points in found.items()} == {
        "lamp": "-",
        "dense (61.2)": "--",
        "control (70.0)": ":",
    }
    assert found["lamp"][0] == []


def test_run_without_records_still_draws(tmp_path, make):
    make.suite(tmp_path, "dense")
    figure = ap_against_sparsity(load_run(tmp_path))
    assert not figure.legends
    assert to_png(figure)


def test_dollar_signs_are_no_mathematics(tmp_path, make):
    make.suite(tmp_path, "lamp", lamp={"family": "a$x^^y$", "label": "a$x^^y$"})
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, label="a$x^^y$"))
    layers = tmp_path / "lamp" / "sparsity-0.3" / "layers.json"
    layers.parent.mkdir(exist_ok=True)
    layers.write_text('[{"name": "a$x^^y$", "sparsity": 0.5}]')
    (experiment,) = load_run(tmp_path).experiments
    assert to_svg(ap_against_sparsity(load_run(tmp_path)))
    assert to_svg(layer_sparsity(experiment))


def test_a_layer_whose_name_is_no_text_is_drawn(run_dir):
    path = run_dir / "lamp" / "sparsity-0.90" / "layers.json"
    path.write_text(r'[{"name": "a\ud800", "sparsity": 0.5}]')
    figure = layer_sparsity(load_run(run_dir).experiments[1])
    assert "a?" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert to_png(figure).startswith(b"\x89PNG")


def test_layers_by_level(run_dir):
    lamp = load_run(run_dir).experiments[1]
    figure = layer_sparsity(lamp)
    axes = figure.axes[0]
    assert axes.collections[0].get_array().tolist() == [[0.0, 0.0], [30.0, 90.0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["30%", "90%"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["backbone.conv1", "neck.fpn"]
    assert [text.get_text() for text in axes.texts] == ["0", "0", "30", "90"]
    assert axes.get_ylim() == (2.0, 0.0)  # the first layer on top


def test_losses_by_layer_and_sparsity():
    curves = {"stem": [(0.5, 0.6), (0.9, 0.25)], "head": [(0.9, 0.7)], "none": []}
    axes = layer_losses(curves, 0.65, "t$i$tle").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["50%", "90%"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["stem", "head"]
    assert [text.get_text() for text in axes.texts] == ["5.0", "40.0", "", "-5.0"]
    assert axes.collections[0].get_clim() == (0, 40.0)


def test_layer_missing_at_one_level_is_left_blank(run_dir):
    rows = [{"name": "backbone.conv1", "sparsity": 0.5}]
    (run_dir / "lamp" / "sparsity-0.90" / "layers.json").write_text(json.dumps(rows))
    figure = layer_sparsity(load_run(run_dir).experiments[1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "50", "30", ""]


def test_dense_and_pending_experiments_have_no_layer_figure(run_dir):
    dense, lamp, *_ = load_run(run_dir).experiments
    assert layer_sparsity(dense) is None
    for record in lamp.records:
        (lamp.folder / record.folder / "layers.json").unlink()
    assert layer_sparsity(lamp) is None


def test_damaged_layers_are_an_error(run_dir):
    path = run_dir / "lamp" / "sparsity-0.30" / "layers.json"
    path.write_text("[{}]")
    with pytest.raises(ConfigError) as raised:
        layer_sparsity(load_run(run_dir).experiments[1])
    assert str(raised.value).startswith(f"{path}: expected JSON as a run writes it, got KeyError ('name').")


def test_files_are_pictures_and_the_same_each_time(run_dir):
    run = load_run(run_dir)
    png, svg = to_png(ap_against_sparsity(run)), to_svg(ap_against_sparsity(run))
    assert Image.open(io.BytesIO(png)).size == (960, 660)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert (png, svg) == (to_png(ap_against_sparsity(run)), to_svg(ap_against_sparsity(run)))
