import pytest

from sparsedet.report.data_plots import MAX_CATEGORIES, data_figure
from sparsedet.report.plots import to_png

EMPTY = {
    "image_width_px": [40.0, 50.0],
    "image_height_px": [30.0, 30.0],
    "boxes_per_image": [0.0, 0.0],
    "box_side_px": [],
    "box_aspect_ratio": [],
    "box_center_x": [],
    "box_center_y": [],
}
FULL = {
    **EMPTY,
    "boxes_per_image": [1.0, 3.0],
    "box_side_px": [4.0, 8.0, 8.0, 64.0],
    "box_aspect_ratio": [1.0] * 4,
    "box_center_x": [0.1, 0.1, 0.9, 1.0],
    "box_center_y": [0.1, 0.1, 0.9, 1.0],
}


def split(values, **categories):
    return {"boxes_per_category": categories, "values": values}


def test_all_boxes_are_in_the_histograms_and_the_map():
    figure = data_figure({"train": split(FULL, cat=3, dog=1)}, "mine")
    categories, per_image, sides, ratios, _, centers = figure.axes[:6]
    assert [bar.get_width() for bar in categories.patches] == [3, 1]
    assert [label.get_text() for label in categories.get_yticklabels()] == ["cat", "dog"]
    for axes in (per_image, sides, ratios):
        (outline,) = axes.patches
        heights = outline.get_xy()[:, 1]
        assert heights[1::2].sum() == pytest.approx(100, abs=1e-6) or heights[:-1:2].sum() == pytest.approx(
            100, abs=1e-6
        )
    assert centers.images[0].get_array().sum() == 4
    assert to_png(figure)[:4] == b"\x89PNG"


def test_splits_share_the_bins_and_have_names():
    figure = data_figure({"train": split(FULL, cat=4), "val": split({**FULL, "box_side_px": [500.0]}, cat=1)}, "mine")
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["train", "val"]
    first, second = (patch.get_xy()[:, 0] for patch in figure.axes[2].patches)
    assert (first == second).all()
    assert first.max() >= 500


@pytest.mark.parametrize("values", [EMPTY, {**EMPTY, "box_side_px": [5.0], "box_aspect_ratio": [0.001]}])
def test_data_with_hardly_anything_in_them_are_drawn(values):
    assert to_png(data_figure({"data": split(values, **{"$x_1$": 0})}, "$a$"))[:4] == b"\x89PNG"


def test_the_most_frequent_of_many_categories_are_shown():
    categories = {f"c{number}": number for number in range(80)}
    axes = data_figure({"train": split(FULL, **categories)}, "mine").axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "c79"
    assert len(labels) == MAX_CATEGORIES
    assert "50 rarer categories not shown" in axes.get_xlabel()
