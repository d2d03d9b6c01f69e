"""From a detector and a data set to COCO results."""

from collections.abc import Iterable
from typing import Any

import torch

from sparsedet.common.modes import in_eval_mode
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.models import Detector
from sparsedet.detection.trainer import AUTOCAST_DTYPES


@torch.no_grad()
def detect(
    model: Detector,
    batches: Iterable[Batch],
    category_ids: tuple[int, ...],
    device: torch.device,
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """Run `model` in eval mode over `batches` and return COCO results by image id; its modes are restored.

    Args:
        model: detector, on `device`.
        batches: images with the way back to their original pixels.
        category_ids: COCO category id of each label, length C.
        device: where the model is.
        precision: number format of the forward pass: fp32, bf16 or fp16.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    results: list[dict[str, Any]] = []
    with in_eval_mode(model):
        for batch in batches:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                outputs = model(batch.images.to(device, memory_format=torch.channels_last))
            found = model.detect(outputs, [target.image_size for target in batch.targets])
            results.extend(batch.to_coco_results(found, category_ids))
    results.sort(key=lambda result: int(result["image_id"]))  # however the images were batched
    return results
