"""Whether an exported detector finds what the detector in PyTorch finds, on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from sparsedet.benchmark.onnx_modules import FasterRCNNNetwork, OnnxModule, RetinaNetNetwork
from sparsedet.detection.data.loader import val_loader
from sparsedet.detection.data.splits import Splits
from sparsedet.export.onnx_run import OnnxRunner, relative_difference

Outputs = Mapping[str, Tensor]

NUM_IMAGES = 2
MIN_IOU = 0.9  # two boxes of one label that overlap as much are the same detection
TOLERANCES = {False: (1e-4, 0.05), True: (0.05, 0.1)}
"""fp16 -> largest relative difference of raw outputs, largest share of detections that have no partner."""


@dataclass(frozen=True)
class Images:
    """What both are run on.

    Attributes:
        images: float32, shape (B, 3, H, W), normalised.
        image_sizes: int64, shape (B, 2), (height, width) without padding.
        origin: where they come from, in words.
    """

    images: Tensor
    image_sizes: Tensor
    origin: str


@dataclass(frozen=True)
class Comparison:
    """How far the outputs are apart.

    Attributes:
        images: what was run, in words.
        shapes: of the batches.
        relative_difference: of each raw output, the largest over all batches, see
            `sparsedet.export.onnx_run.relative_difference`; empty with post-processing, and of a two-stage detector
            for the regions that both propose.
        num_boxes: detections, or proposals, of PyTorch over all batches; None for raw outputs of a one-stage detector.
        unmatched: share of the detections (by summed scores), or of the proposals (by number), without a partner of
            the same label that overlaps by 0.9 of IoU; likewise.
        box_difference_px: largest distance of corners among partners; likewise.
        score_difference: largest difference of scores among partners; None for raw outputs.
        tolerance: largest relative difference and largest unmatched share that pass.
    """

    images: str
    shapes: tuple[tuple[int, ...], ...]
    relative_difference: dict[str, float]
    num_boxes: int | None
    unmatched: float | None
    box_difference_px: float | None
    score_difference: float | None
    tolerance: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @property
    def fault(self) -> str | None:
        """What is too far apart; None: nothing."""
        largest, unmatched = self.tolerance
        for name, difference in self.relative_difference.items():
            if difference > largest:
                return f"{name}: expected PyTorch's values within {largest:g} of the largest, got {difference:.2g}"
        if self.unmatched is not None and self.unmatched > unmatched:
            return (
                f"boxes: expected a partner for all but {unmatched:.0%} of PyTorch's, got {self.unmatched:.1%} without"
            )
        return None


def check_images(splits: Splits | None, stride: int, shape: Sequence[int]) -> Images:
    """Return the first validation images, or random ones of `shape` where there are no data.

    Raises:
        DatasetError: an image cannot be read.
    """
    if splits is None:
        images = torch.randn((NUM_IMAGES, *shape[1:]), generator=torch.Generator().manual_seed(0))
        return Images(images, torch.tensor([images.shape[2:]] * NUM_IMAGES), "random images, as the data are not there")
    batch = next(val_loader(splits.val, NUM_IMAGES, stride))
    names = [image.file_name for image in splits.val.images if image.id in batch.image_ids]
    sizes = torch.tensor([target.image_size for target in batch.targets])
    return Images(batch.images, sizes, f"the validation images {', '.join(names)}")


@torch.no_grad()
def compare(module: OnnxModule, path: Path, images: Images, fp16: bool) -> Comparison:
    """Run `module`, in eval mode, and the file made from it on `images`, and on one of them with a wider border.

    Raises:
        CheckpointError: onnxruntime cannot run the file.
    """
    run, stride = OnnxRunner(path), module.detector.stride
    alone = F.pad(images.images[:1], (0, 2 * stride, 0, stride)), images.image_sizes[:1]
    outcomes, shapes = [], []
    for inputs in ((images.images, images.image_sizes), alone):
        used = inputs[: len(module.input_names)]
        expected = dict(zip(module.output_names, module(*used), strict=True))
        outcomes.append(_compare_outputs(module, expected, run(used)))
        shapes.append(tuple(inputs[0].shape))
    num_boxes = sum(int(outcome.pop("num_boxes")) for outcome in outcomes) if "num_boxes" in outcomes[0] else None
    worst = {name: max(outcome[name] for outcome in outcomes) for name in outcomes[0]}
    return Comparison(
        images=images.origin,
        shapes=tuple(shapes),
        relative_difference={name: worst[name] for name in module.output_names if name in worst},
        num_boxes=num_boxes,
        unmatched=worst.get("unmatched"),
        box_difference_px=worst.get("box_difference_px"),
        score_difference=worst.get("score_difference"),
        tolerance=TOLERANCES[fp16],
    )


def _compare_outputs(module: OnnxModule, expected: Outputs, actual: Outputs) -> dict[str, float]:
    """Return the relative difference of each output, and fields of `Comparison`, for one batch."""
    if isinstance(module, RetinaNetNetwork):
        return relative_difference(expected, actual)
    first, second = _found(module, expected), _found(module, actual)
    ours, theirs = _match(first, second)
    total = float(first.weights.double().sum() + second.weights.double().sum())
    paired = float(first.weights[ours].double().sum() + second.weights[theirs].double().sum())
    result = {
        "num_boxes": len(first.rows),
        "unmatched": 1 - paired / total if total else 0.0,
        "box_difference_px": _largest(first.boxes_xyxy[ours] - second.boxes_xyxy[theirs]),
    }
    if "labels" in expected:
        return {**result, "score_difference": _largest(first.weights[ours] - second.weights[theirs])}
    values = {name: expected[name].flatten(0, 1)[first.rows[ours]] for name in ("cls_logits", "box_deltas")}
    others = {name: actual[name].flatten(0, 1)[second.rows[theirs]] for name in values}
    return {**result, **relative_difference(values, others)}


@dataclass(frozen=True)
class _Found:
    """Boxes of all images of a batch.

    Attributes:
        rows: where each is in the outputs, whose first two dimensions are made one; int64, shape (N,).
        boxes_xyxy: shape (N, 4).
        groups: number of the image and label, or image and level; int64, shape (N,).
        weights: the scores, or 1 for proposals; shape (N,).
    """

    rows: Tensor
    boxes_xyxy: Tensor
    groups: Tensor
    weights: Tensor


def _found(module: OnnxModule, outputs: Outputs) -> _Found:
    boxes = outputs["boxes" if "boxes" in outputs else "proposals"]
    batch, number = boxes.shape[:2]
    if "labels" in outputs:
        labels, weights = outputs["labels"], outputs["scores"]
    else:
        num_levels = module.num_pooled if isinstance(module, FasterRCNNNetwork) else 1
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        labels = torch.arange(num_levels).repeat_interleave(number // num_levels).where(has_area, -1)
        weights = torch.ones(batch, number)
    groups = torch.arange(batch)[:, None] * (labels.max() + 1) + labels
    rows = (labels >= 0).flatten().nonzero()[:, 0]
    return _Found(rows, boxes.flatten(0, 1)[rows], groups.flatten()[rows], weights.flatten()[rows])


def _match(first: _Found, second: _Found) -> tuple[Tensor, Tensor]:
    """Return which boxes are partners: of one group, each the other's best by IoU, which is at least `MIN_IOU`."""
    ours, theirs = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for group in sorted(set(first.groups.tolist())):
        rows, others = ((found.groups == group).nonzero()[:, 0] for found in (first, second))
        if not len(others):
            continue
        iou = box_iou(first.boxes_xyxy[rows], second.boxes_xyxy[others])
        while True:  # more than once where some boxes are equal
            best, index = iou.max(dim=1)
            is_mutual = (iou.argmax(dim=0)[index] == torch.arange(len(rows))) & (best >= MIN_IOU)
            if not is_mutual.any():
                break
            ours.append(rows[is_mutual])
            theirs.append(others[index[is_mutual]])
            iou[is_mutual] = 0
            iou[:, index[is_mutual]] = 0
    return torch.cat(ours), torch.cat(theirs)


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max()) if differences.numel() else 0.0
