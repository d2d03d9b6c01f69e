"""What data look like: pictures of findings, of images with their boxes, and plots of their statistics."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from sparsedet.common.errors import ConfigError, DatasetError
from sparsedet.common.files import write_atomically
from sparsedet.detection.data.check import Split
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.findings import Example, Finding, printable
from sparsedet.detection.data.images import decode_image
from sparsedet.detection.data.scene import IGNORE
from sparsedet.detection.data.statistics import Statistics
from sparsedet.report.data_pictures import Picture, draw_grid
from sparsedet.report.data_plots import data_figure
from sparsedet.report.pictures import Box, image_to_png, to_jpeg
from sparsedet.report.plots import to_png

NUM_EXAMPLES = 4  # of each finding
NUM_COLUMNS = 6

_UNOPENED = ("image-missing", "image-name-unsafe", "image-too-large")


def write_findings(splits: Sequence[Split], path: Path) -> None:
    """Write a JPEG or PNG with pictures of the first examples of each finding, with the boxes it is about.

    Raises:
        ConfigError: the name of the file says no format that is written.
    """
    encode = _encoder(path)
    pictures = [
        picture
        for split in splits
        for finding in split.findings.found
        for example in finding.examples[:NUM_EXAMPLES]
        for picture in _pictures(split, finding, example)
    ]
    page = draw_grid(pictures, NUM_COLUMNS)
    write_atomically(path, lambda stream: stream.write(encode(page)))


def write_plots(statistics: Sequence[Statistics], title: str, path: Path) -> None:
    """Write a PNG with plots of the statistics of splits.

    Raises:
        ConfigError: the name of the file says another format.
    """
    _require_suffix(path, (".png",))
    figure = data_figure({split.name: asdict(split) for split in statistics}, title)
    write_atomically(path, lambda stream: stream.write(to_png(figure)))


def write_images(dataset: DetectionDataset, path: Path, num_images: int, also_transformed: bool) -> None:
    """Write a JPEG or PNG with images of a split, evenly spread, and their boxes.

    Args:
        dataset: the split; its transforms are those that are shown.
        path: of the picture.
        num_images: at most so many.
        also_transformed: put each image beside itself as the transforms of epoch 0 make it.

    Raises:
        ConfigError: the name of the file says no format that is written.
    """
    encode = _encoder(path)
    num_images = min(num_images, len(dataset))
    config = dataset.config.model_copy(update={"train_transforms": (), "val_transforms": ()})
    plain = DetectionDataset(dataset.coco, config, dataset.is_train)
    pictures = []
    for index in (number * len(dataset) // num_images for number in range(num_images)):
        file_name = printable(dataset.images[index].file_name)
        pictures.append(_as_trained(plain, index, file_name))
        if also_transformed:
            pictures.append(_as_trained(dataset, index, "… as the network sees it"))
    page = draw_grid(pictures, NUM_COLUMNS)
    write_atomically(path, lambda stream: stream.write(encode(page)))


def _encoder(path: Path) -> Callable[[Image.Image], bytes]:
    """Return what makes a file of an image, in the format that the name of the file says."""
    _require_suffix(path, (".jpg", ".jpeg", ".png"))
    return image_to_png if path.suffix.lower() == ".png" else to_jpeg


def _require_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}. Choose such a name.")


def _as_trained(dataset: DetectionDataset, index: int, title: str) -> Picture:
    sample = dataset[0, index]
    image = Image.fromarray(dataset.pixels(sample).permute(1, 2, 0).numpy())
    names = {label: category.name for label, category in enumerate(dataset.coco.categories)} | {IGNORE: "ignore"}
    labels = [*sample.target.labels.tolist(), *[IGNORE] * len(sample.target.ignore_xyxy)]
    corners = [*sample.target.boxes_xyxy.tolist(), *sample.target.ignore_xyxy.tolist()]
    boxes = tuple(Box((x, y, x2 - x, y2 - y), label) for (x, y, x2, y2), label in zip(corners, labels, strict=True))
    return Picture((title, f"{image.width}x{image.height}"), image, boxes, names)


def _pictures(split: Split, finding: Finding, example: Example) -> list[Picture]:
    """Return the picture of an example, and of the image it is like; none where it is about no usable image entry."""
    images = {image.id: image for image in split.dataset.images} if split.dataset else {}
    record = images.get(example.image_id) if example.image_id is not None else None
    if split.dataset is None or record is None:
        return []
    name = printable(record.file_name)
    lines = f"{split.name} {finding.policy} {finding.kind}", example.text, "" if name in example.text else name
    opened = None if split.unusable.get(record.id) in _UNOPENED else _open(split.dataset.image_path(record))
    if example.bbox is not None:
        return [Picture(lines, opened, (Box(example.bbox, 0),), {0: finding.kind})]
    names = {category.id: category.name for category in split.dataset.categories}
    boxes = tuple(Box(found.bbox, found.category_id) for found in split.dataset.annotations_by_image[record.id])
    pictures = [Picture(lines, opened, boxes, names)]
    if example.twin is not None:
        pictures.append(Picture(("… and in the training split", printable(example.twin.name)), _open(example.twin)))
    return pictures


def _open(path: Path) -> Image.Image | None:
    try:
        return Image.fromarray(decode_image(path).permute(1, 2, 0).numpy())
    except DatasetError:
        return None
