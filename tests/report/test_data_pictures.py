import numpy as np
import pytest
from PIL import Image

from sparsedet.report.data_pictures import OUTSIDE, Picture, draw_grid
from sparsedet.report.pictures import GAP, PANEL_SIZE, TITLE_HEIGHT, Box

WIDTH = PANEL_SIZE + GAP
BLACK = Image.new("RGB", (PANEL_SIZE, PANEL_SIZE))


def pixels(picture):
    return np.asarray(draw_grid([picture], 1)).astype(int)


def extent(mask):
    """Return left, top, right, bottom of where `mask` is True."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def colored(array):
    return (array.max(axis=2) - array.min(axis=2)) > 60


def test_pictures_go_row_by_row():
    grid = draw_grid([Picture(("a", "b"), BLACK)] * 5, 3)
    assert grid.size == (3 * WIDTH, 2 * (PANEL_SIZE + 2 * TITLE_HEIGHT + GAP))
    array = np.asarray(grid)
    middle = 2 * TITLE_HEIGHT + PANEL_SIZE // 2
    below = middle + PANEL_SIZE + 2 * TITLE_HEIGHT + GAP
    assert [array[middle, WIDTH * column + 99].max() for column in range(3)] == [0, 0, 0]
    assert [array[below, WIDTH * column + 99].max() for column in range(3)] == [0, 0, 255]


def test_a_box_inside_is_where_it_is():
    array = pixels(Picture(("",), BLACK, (Box((50, 60, 100, 80), 1),), {1: ""}))
    left, _, right, bottom = extent(colored(array))
    assert (left, right, bottom) == (50, 150, TITLE_HEIGHT + 140)
    assert not colored(array)[TITLE_HEIGHT + 62 : TITLE_HEIGHT + 138, 52:148].any()  # an outline of 2 px


def test_a_box_outside_widens_the_picture():
    array = pixels(Picture(("",), BLACK, (Box((-32, 0, 64, 64), 1),), {1: ""}))
    scale = PANEL_SIZE / (PANEL_SIZE + 32)
    gray = (array == OUTSIDE).all(axis=2)
    left, _, right, _ = extent(gray[TITLE_HEIGHT + 80 :])
    assert left == 0
    assert right == pytest.approx(32 * scale, abs=2)


@pytest.mark.parametrize(
    "xywh", [(1e30, -1e30, 1e30, 1e30), (5, 5, -20, 30), (5, 5, 0, 0), (0, 0, 1e300, 1e300), (-1e9, 0, 5, 5)]
)
def test_no_box_breaks_the_picture(xywh):
    grid = draw_grid([Picture(("",), BLACK, (Box(xywh, 1),), {1: "x"})], 1)
    assert grid.size == (WIDTH, PANEL_SIZE + TITLE_HEIGHT + GAP)


def test_small_and_long_images_fit():
    for size in ((1, 1), (3000, 2), (2, 3000), (10, 700)):
        assert draw_grid([Picture(("",), Image.new("RGB", size))], 1).size == (WIDTH, PANEL_SIZE + TITLE_HEIGHT + GAP)


def test_without_an_image_it_says_so():
    array = pixels(Picture(("",), None))
    assert (array[TITLE_HEIGHT + 5, 5] == OUTSIDE).all()
    assert draw_grid([], 3).size == (PANEL_SIZE, PANEL_SIZE)


def test_long_lines_are_cut_in_the_middle():
    short, long = (
        np.asarray(draw_grid([Picture((text,), BLACK)], 1))[:TITLE_HEIGHT] for text in ("ab", "a" + "x" * 99 + "b")
    )
    assert (long[:, :8] == short[:, :8]).all()  # both begin with a
    assert long[:, PANEL_SIZE - 20 : PANEL_SIZE].min() < 128
    assert long[:, PANEL_SIZE:].min() == 255
