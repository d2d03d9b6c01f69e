"""The few validation images that a run keeps, so that its report can show detections without the data set."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sparsedet.common.files import write_json
from sparsedet.detection.data.coco import ImageRecord
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.images import decode_image
from sparsedet.report.run import SAMPLES_FILE


def spread(images: Sequence[ImageRecord], number: int) -> list[ImageRecord]:
    """Return `number` of `images`, or all if there are no more, at equal distances."""
    number = min(number, len(images))
    return [images[index * len(images) // number] for index in range(number)]


def save(folder: Path, dataset: DetectionDataset, num_samples: int) -> None:
    """Write `num_samples` images with boxes, spread over `dataset`, and their ground truth into `folder`."""
    coco = dataset.coco
    with_boxes = [image for image in coco.images if coco.annotations_by_image[image.id]] or list(coco.images)
    chosen = spread(with_boxes, num_samples)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    images = []
    for image in chosen:
        pixels = decode_image(coco.image_path(image), (image.height, image.width))
        name = f"samples/{image.id}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
        boxes = [{"bbox": list(a.bbox), "category_id": a.category_id} for a in coco.annotations_by_image[image.id]]
        images.append({"image_id": image.id, "file": name, "boxes": boxes})
    categories = [{"id": category.id, "name": category.name} for category in coco.categories]
    write_json(folder / SAMPLES_FILE, {"images": images, "categories": categories})
