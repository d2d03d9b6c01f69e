"""Detections of a checkpoint in image files: in Python one by one, on disk as COCO JSON and annotated pictures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from sparsedet.benchmark.checkpoint import SavedDetector, open_checkpoint
from sparsedet.benchmark.console import Console
from sparsedet.common.errors import DatasetError
from sparsedet.common.files import write_atomically, write_text
from sparsedet.common.runtime import choose_device, start, writable_folder
from sparsedet.detection.data.images import decode_image
from sparsedet.detection.prediction import Prediction, Skipped, find_images, predict
from sparsedet.report.pictures import Box, draw_boxes, to_jpeg

DETECTIONS_FILE = "detections.json"
PICTURES_FOLDER = "pictures"


@dataclass(frozen=True)
class Predictor:
    """A detector from a checkpoint, ready for image files.

    Attributes:
        saved: the detector, on `device`.
        device: where it runs.
    """

    saved: SavedDetector
    device: torch.device

    @classmethod
    def open(cls, checkpoint: Path, device: str = "auto", overrides: tuple[str, ...] = ()) -> Self:
        """Open a checkpoint or a compact file of weights.

        Raises:
            CheckpointError: the file is damaged or of another program.
            ConfigError: the device is absent, or an override of the recipe is wrong.
        """
        saved = open_checkpoint(checkpoint, overrides)
        chosen = choose_device(device)
        start(saved.recipe.seed, chosen)
        saved.model.to(chosen)
        return cls(saved, chosen)

    @property
    def names(self) -> dict[int, str]:
        """Name of each category by its id."""
        return {category.id: category.name for category in self.saved.categories}

    def predict(self, paths: Iterable[Path], min_score: float = 0.3) -> Iterator[Prediction | Skipped]:
        """Yield what is found in each image file, or why a file was passed over.

        Args:
            paths: image files, and folders whose image files are meant.
            min_score: what is found with a lower score is left out.

        Raises:
            DatasetError: there is no file at all.
        """
        recipe = self.saved.recipe
        return predict(
            self.saved.model,
            recipe.data,
            self.saved.categories,
            find_images(paths),
            self.device,
            batch_size=recipe.evaluation.batch_size,
            num_workers=recipe.training.num_workers,
            precision=recipe.training.precision,
            min_score=min_score,
        )


def predict_to_folder(
    predictor: Predictor, paths: Iterable[Path], folder: Path, min_score: float, console: Console
) -> tuple[dict[str, Any], tuple[Skipped, ...]]:
    """Write `detections.json` and an annotated picture of each image into `folder`.

    The file is COCO JSON with a score for each annotation; what was found in an image stands under its id, and so does
    its picture, ``pictures/<id>-<name>.jpg``.

    Args:
        predictor: the detector.
        paths: image files, and folders whose image files are meant.
        folder: where to write.
        min_score: what is found with a lower score is left out.
        console: where files that are passed over are named, and progress is shown.

    Returns:
        The content of `detections.json`, and the files that were passed over.

    Raises:
        DatasetError: there is no file at all.
        StorageError: the folder cannot be written.
    """
    files = find_images(paths)
    writable_folder(folder)
    predictions: list[Prediction] = []
    skipped: list[Skipped] = []
    with console.counting("predict", len(files)) as count:
        for outcome in predictor.predict(files, min_score):
            if isinstance(outcome, Prediction):
                outcome = _drawn(outcome, folder / PICTURES_FOLDER, predictor.names)
            if isinstance(outcome, Skipped):
                console.warn(f"skipped: {outcome.reason}")
                skipped.append(outcome)
            else:
                predictions.append(outcome)
            count(len(predictions) + len(skipped))
    content = _as_coco(sorted(predictions, key=lambda prediction: prediction.image_id), predictor.names)
    content["skipped"] = [{"file_name": str(one.path), "reason": one.reason} for one in skipped]
    write_text(folder / DETECTIONS_FILE, json.dumps(content, allow_nan=False))
    return content, tuple(skipped)


def _as_coco(predictions: list[Prediction], names: dict[int, str]) -> dict[str, Any]:
    results = [result for prediction in predictions for result in prediction.results]
    return {
        "images": [
            {"id": one.image_id, "file_name": str(one.path), "width": one.width, "height": one.height}
            for one in predictions
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in names.items()],
        "annotations": [
            {"id": number, **result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for number, result in enumerate(results, start=1)
        ],
    }


def _drawn(prediction: Prediction, folder: Path, names: dict[int, str]) -> Prediction | Skipped:
    """Write the annotated picture; the file may be gone since it was read, then it is passed over after all."""
    try:
        pixels = decode_image(prediction.path, (prediction.height, prediction.width))
    except DatasetError as error:
        return Skipped(prediction.path, str(error))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    boxes = [Box(row["bbox"], row["category_id"], row["score"]) for row in prediction.results]
    draw_boxes(picture, boxes, names)
    name = f"{prediction.image_id:06d}-{prediction.path.stem[:50]}.jpg"  # 50 letters fit into a file name in any script
    write_atomically(folder / name, lambda stream: stream.write(to_jpeg(picture)))
    return prediction
