"""Strips of sample images: ground truth, dense and every level side by side, drawn with Pillow."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from sparsedet.common.errors import DatasetError, escape
from sparsedet.report.plots import COLOURS
from sparsedet.report.record import Record
from sparsedet.report.run import DETECTIONS_FILE, SAMPLES_FILE, Experiment, Run, read_saved
from sparsedet.report.tables import ap_text, level_name

MIN_SCORE = 0.3
MAX_SAMPLES = 4
MAX_PIXELS = 1e6
MAX_NAME_LENGTH = 100
PANEL_SIZE = 256
TITLE_HEIGHT = 20
GAP = 4

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Attributes:
        xywh: left, top, width, height in pixels of the original image.
        category_id: COCO id.
        score: in [0, 1]; None for ground truth.
    """

    xywh: tuple[float, float, float, float]
    category_id: int
    score: float | None = None


@dataclass(frozen=True)
class Sample:
    """A validation image that a run saved, with its ground truth."""

    image_id: int
    path: Path
    boxes: tuple[Box, ...]


def read_samples(experiment: Experiment) -> tuple[tuple[Sample, ...], dict[int, str]]:
    """Return the sample images of an experiment and the category names by id; empty when it saved none.

    Raises:
        ConfigError: `samples.json` is damaged.
    """
    path = experiment.folder / SAMPLES_FILE
    if not path.exists():
        return (), {}

    def take(data: Any) -> tuple[tuple[Sample, ...], dict[int, str]]:
        samples = tuple(
            Sample(_id(image["image_id"]), _inside(experiment.folder, image["file"]), tuple(map(_box, image["boxes"])))
            for image in data["images"]
        )
        return samples, {_id(category["id"]): _name(category["name"]) for category in data["categories"]}

    return read_saved(path, take)


def experiments_with_strips(run: Run) -> list[Experiment]:
    """Return the experiments that strips are drawn of: the sparse ones or, without any, the dense ones."""
    started = [experiment for experiment in run.experiments if experiment.records]
    return [experiment for experiment in started if not experiment.is_dense] or started


def sample_strips(run: Run, experiment: Experiment) -> Iterator[tuple[int, Image.Image]]:
    """Yield (image id, strip) for the first samples: ground truth, dense, then each level of `experiment`.

    Detections below a score of `MIN_SCORE` are not drawn. A level without `detections.json` has no panel.

    Raises:
        ConfigError: a JSON file is damaged.
        DatasetError: a sample image is missing or cannot be read.
    """
    samples, names = read_samples(experiment)
    samples = samples[:MAX_SAMPLES]
    dense = run.dense_for(experiment)
    sources = (
        [("dense", dense.folder, dense.records[-1])] if dense and dense.records and not experiment.is_dense else []
    )
    sources += [(level_name(record), experiment.folder, record) for record in experiment.records]
    wanted = {sample.image_id for sample in samples}
    found = [
        (f"{name}   AP {ap_text(record.ap)}", _detections(folder, record, wanted)) for name, folder, record in sources
    ]
    for sample in samples:
        image = _open(sample.path)
        panels = [draw_panel(image, "ground truth", sample.boxes, names)]
        panels += [
            draw_panel(image, title, boxes[sample.image_id], names) for title, boxes in found if boxes is not None
        ]
        yield sample.image_id, join_panels(panels)


def draw_panel(image: Image.Image, title: str, boxes: Sequence[Box], names: Mapping[int, str]) -> Image.Image:
    """Draw boxes, class names and scores on `image` scaled to `PANEL_SIZE` (longer side), under a title."""
    scale = PANEL_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    scaled_boxes = [
        replace(box, xywh=(x * scale, y * scale, w * scale, h * scale)) for box in boxes for x, y, w, h in [box.xywh]
    ]
    draw_boxes(scaled, scaled_boxes, names)
    panel = Image.new("RGB", (width, height + TITLE_HEIGHT), "white")
    panel.paste(scaled, (0, TITLE_HEIGHT))
    ImageDraw.Draw(panel).text((2, TITLE_HEIGHT // 2), title, "black", font(12), anchor="lm")
    return panel


def draw_boxes(image: Image.Image, boxes: Sequence[Box], names: Mapping[int, str]) -> None:
    """Draw boxes, class names and scores into an RGB `image`, whose pixels the boxes are in.

    Lines and letters are larger in an image that must be shrunk to fit a screen.
    """
    draw = ImageDraw.Draw(image)
    zoom = max(1, round(max(image.size) / 640))
    colors = {category: _color(index) for index, category in enumerate(sorted(names))}
    ordered = sorted(boxes, key=lambda box: box.score or 0)
    for box in ordered:
        x, y, w, h = box.xywh
        corners = (round(x), round(y), max(round(x), round(x + w) - 1), max(round(y), round(y + h) - 1))
        draw.rectangle(corners, outline=colors.get(box.category_id, _color(0)), width=2 * zoom)
    for box in ordered:  # after all boxes, so that no box crosses a text
        text = " ".join(names.get(box.category_id, str(box.category_id)).split())
        text += "" if box.score is None else f" {box.score:.2f}"
        _draw_tag(image, text, box, colors.get(box.category_id, _color(0)), zoom)


def join_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Put panels of equal height side by side with a white gap."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    strip = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        strip.paste(panel, (left, 0))
        left += panel.width + GAP
    return strip


def image_to_png(image: Image.Image) -> bytes:
    """Return `image` as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def to_jpeg(image: Image.Image) -> bytes:
    """Return `image` as JPEG rather than PNG: photographs, and a report that can still be sent by mail."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def _draw_tag(image: Image.Image, text: str, box: Box, color: Color, zoom: int) -> None:
    """Write `text` above the upper left corner of `box`, or below it where there is no room above."""
    draw, letters = ImageDraw.Draw(image), font(11 * zoom)
    width, height = round(letters.getlength(text)) + 4, 14 * zoom
    x, y, _, _ = box.xywh
    left = min(max(0, round(x)), max(0, image.width - width))
    top = round(y) - height if y >= height else max(0, round(y))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    is_bright = sum(weight * channel for weight, channel in zip((0.3, 0.6, 0.1), color, strict=True)) > 140
    draw.text((left + 2, top + height // 2), text, "black" if is_bright else "white", letters, anchor="lm")


def _detections(folder: Path, record: Record, wanted: set[int]) -> dict[int, list[Box]] | None:
    path = folder / record.folder / DETECTIONS_FILE
    if not path.exists():
        return None

    def take(rows: Any) -> dict[int, list[Box]]:
        boxes: dict[int, list[Box]] = {image_id: [] for image_id in wanted}
        for row in rows:
            if row["image_id"] in wanted and row["score"] >= MIN_SCORE:
                boxes[row["image_id"]].append(_box(row))
        return boxes

    return read_saved(path, take)


def _box(row: Any) -> Box:
    x, y, w, h = (float(value) for value in row["bbox"])
    if not all(abs(value) <= MAX_PIXELS for value in (x, y, w, h)):  # nor NaN
        raise ValueError(f"the box {(x, y, w, h)}")
    score = row.get("score")
    return Box((x, y, max(w, 0.0), max(h, 0.0)), _id(row["category_id"]), None if score is None else float(score))


def _id(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("an id that is no whole number")
    return value


def _name(value: Any) -> str:
    return escape(" ".join(str(value).split())[:MAX_NAME_LENGTH])


def _inside(folder: Path, name: Any) -> Path:
    """Return the path of a sample image: another's picture has no place in a report."""
    path = folder / str(name)
    is_inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    if not (re.fullmatch(r"samples/\w+\.png", str(name)) and is_inside):
        raise ValueError(f"the file '{name}', which is no PNG file in its folder samples")
    return path


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:  # as a run saves them; others may be programs
                return image.convert("RGB")
    except Exception as error:  # Pillow has many kinds for a damaged file
        raise DatasetError(
            f"{path}: expected the sample image that samples.json names, got {type(error).__name__}. "
            "Put it back, or delete samples.json for a report without pictures."
        ) from error


def _color(index: int) -> Color:
    text = COLOURS[index % len(COLOURS)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Matplotlib's own DejaVu in a size in pixels: it knows most scripts and is there on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
