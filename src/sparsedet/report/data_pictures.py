"""Pictures of data: images with their boxes in a grid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

from sparsedet.report.pictures import GAP, PANEL_SIZE, TITLE_HEIGHT, Box, draw_panel, font

MAX_MARGIN = 0.25  # of the image's side, where boxes reach outside
OUTSIDE = (200, 200, 200)


@dataclass(frozen=True)
class Picture:
    """An image with boxes.

    Attributes:
        lines: what stands over it.
        image: None where there is none to show.
        boxes: in pixels of the image; may reach outside, which widens the picture.
        names: what is written at a box, by category id.
    """

    lines: tuple[str, ...]
    image: Image.Image | None
    boxes: tuple[Box, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)


def draw_grid(pictures: Sequence[Picture], num_columns: int) -> Image.Image:
    """Draw pictures in rows of `num_columns`; a page without any says so."""
    if not pictures:
        return _text_line("no picture", PANEL_SIZE, PANEL_SIZE)
    text_height = TITLE_HEIGHT * max(len(picture.lines) for picture in pictures)
    width, height = PANEL_SIZE + GAP, PANEL_SIZE + text_height + GAP
    page = Image.new("RGB", (num_columns * width, math.ceil(len(pictures) / num_columns) * height), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, num_columns)
        panel = _panel(picture)
        left, top = column * width, row * height
        page.paste(panel, (left + (PANEL_SIZE - panel.width) // 2, top + text_height - TITLE_HEIGHT))
        for index, line in enumerate(picture.lines):
            page.paste(_text_line(line, PANEL_SIZE, TITLE_HEIGHT), (left, top + index * TITLE_HEIGHT))
    return page


def _panel(picture: Picture) -> Image.Image:
    """Return the image with its boxes below an empty line."""
    if picture.image is not None:
        image, boxes = _with_margin(picture.image, picture.boxes)
        return draw_panel(image, "", boxes, picture.names)
    panel = draw_panel(Image.new("RGB", (PANEL_SIZE, PANEL_SIZE), OUTSIDE), "", (), {})
    ImageDraw.Draw(panel).text((PANEL_SIZE // 2, PANEL_SIZE // 2), "no picture", "black", font(12), anchor="mm")
    return panel


def _with_margin(image: Image.Image, boxes: Sequence[Box]) -> tuple[Image.Image, list[Box]]:
    """Return the image with as much room around it as its boxes need, up to `MAX_MARGIN`, and the boxes in it."""
    limit_x, limit_y = (math.ceil(MAX_MARGIN * side) for side in image.size)
    corners = [_corners(box, image, limit_x, limit_y) for box in boxes]
    left = math.ceil(max([0.0, *(-x for x, _, _, _ in corners)]))
    top = math.ceil(max([0.0, *(-y for _, y, _, _ in corners)]))
    right = math.ceil(max([0.0, *(x2 - image.width for _, _, x2, _ in corners)]))
    bottom = math.ceil(max([0.0, *(y2 - image.height for _, _, _, y2 in corners)]))
    canvas = Image.new("RGB", (left + image.width + right, top + image.height + bottom), OUTSIDE)
    canvas.paste(image, (left, top))
    moved = [
        replace(box, xywh=(x + left, y + top, x2 - x, y2 - y))
        for box, (x, y, x2, y2) in zip(boxes, corners, strict=True)
    ]
    return canvas, moved


def _corners(box: Box, image: Image.Image, limit_x: int, limit_y: int) -> tuple[float, float, float, float]:
    """Return the corners of a box, cut off where the margin ends."""
    x, y, width, height = box.xywh
    (x, x2), (y, y2) = sorted((x, x + width)), sorted((y, y + height))
    x, x2 = (min(max(value, -limit_x), image.width + limit_x) for value in (x, x2))
    y, y2 = (min(max(value, -limit_y), image.height + limit_y) for value in (y, y2))
    return x, y, x2, y2


def _text_line(text: str, width: int, height: int) -> Image.Image:
    line = Image.new("RGB", (width, height), "white")
    letters = font(12)
    kept = len(text)
    shown = text
    while kept and letters.getlength(shown) > width - 4:  # cut in the middle: names of files differ at their ends
        kept -= 1
        shown = text[: kept // 3] + "…" + text[len(text) - (kept - kept // 3) :]
    ImageDraw.Draw(line).text((2, height // 2), shown, "black", letters, anchor="lm")
    return line
