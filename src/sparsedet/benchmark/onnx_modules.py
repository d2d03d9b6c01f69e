"""What of a detector goes into an ONNX file: the network alone, or with its post-processing, as plain modules.

The modules compute what `Detector.forward` and `Detector.detect` do, for a whole batch at once and with tensors of
shapes that do not depend on values, which is what `torch.export` can trace for any batch and image size.

Shapes: B images, L levels, A anchors of a level, C classes, K candidates of a class, P regions of an image,
D = ``max_detections``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from sparsedet.detection.models import Detector, FasterRCNN, RetinaNet
from sparsedet.detection.models.anchors import per_anchor
from sparsedet.detection.models.boxes import decode_boxes
from sparsedet.detection.models.post_processing import UP_SMALL_LEVEL
from sparsedet.detection.models.roi_pooling import roi_levels
from sparsedet.detection.models.rpn import RPNOutput
from sparsedet.export.onnx_nms import nms_mask_operator

ABSENT = float("-inf")  # score of a candidate that does not count


class RetinaNetNetwork(nn.Module):
    """Images (B, 3, H, W) to the raw predictions of all levels, finest first: what `RetinaNet.forward` returns."""

    input_names = ("images",)

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector
        first = detector.config.backbone.levels[0]
        kinds = ("cls_logits", "box_deltas", *(["iou_logits"] if detector.config.head.iou_branch else []))
        self.output_names = tuple(
            f"{kind}_{level}" for level in range(first, first + detector.head.num_levels) for kind in kinds
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps in the order of `output_names`; see `HeadOutput`."""
        return tuple(x for output in self.detector(images) for x in output if x is not None)


class RetinaNetDetections(nn.Module):
    """Images and their sizes to detections, as `RetinaNet.detect` finds them."""

    input_names = ("images", "image_sizes")
    output_names = ("boxes", "scores", "labels")

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, D, 4), scores and labels (B, D); see `_best`.

        Args:
            images: float, shape (B, 3, H, W), normalised.
            image_sizes: int64, shape (B, 2), (height, width) in pixels of each image without its padding.
        """
        config = self.detector.config
        post = config.post_processing
        outputs = self.detector(images)
        boxes, scores = [], []
        for output, anchors in zip(outputs, self.detector.anchors(outputs), strict=True):
            level = self.detector.predictions(output)
            num_anchors = anchors.shape[0]
            level_boxes = _clip(decode_boxes(level.box_deltas, anchors), image_sizes, config.legacy_boxes)
            best, index = level.scores.transpose(1, 2).topk(torch.sym_min(post.top_n, num_anchors), dim=2)
            is_counted = best > post.score_threshold
            if post.up_compat:
                is_counted |= torch.full_like(best, num_anchors) <= UP_SMALL_LEVEL
            scores.append(best.where(is_counted, ABSENT))
            boxes.append(_take(level_boxes, index.flatten(1)).reshape(*index.shape, 4))
        return _best(torch.cat(boxes, dim=2), torch.cat(scores, dim=2), post.nms_iou, post.max_detections)


class FasterRCNNNetwork(nn.Module):
    """Images and their sizes to regions and the raw predictions for them: both stages, with the choice of regions."""

    input_names = ("images", "image_sizes")
    output_names = ("proposals", "cls_logits", "box_deltas")

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    @property
    def num_pooled(self) -> int:
        """How often each region is in the outputs."""
        config = self.detector.config.roi_head
        return config.num_levels if config.up_compat else 1

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return proposals (B, P, 4) in pixels, logits (B, P, C + 1) and deltas (B, P, (C + 1) * 4).

        P is ``rpn.test_proposals`` or, in small images, the number of candidates; where fewer regions are proposed
        the proposals at the end are all zero. With ``roi_head.up_compat`` all regions of a level come after those of
        the level before, so that P is that times the number of levels.

        Args:
            images: float, shape (B, 3, H, W), normalised.
            image_sizes: int64, shape (B, 2), (height, width) in pixels of each image without its padding.
        """
        detector, config = self.detector, self.detector.config
        features, outputs = detector(images)
        rois = self._proposals(outputs, image_sizes)
        batch, number = rois.shape[:2]
        pooled = self._pool(features[: config.roi_head.num_levels], rois)
        cls_logits, box_deltas = detector.box_head(pooled.to(detector.box_head.fc1.weight.dtype))
        return (
            rois.repeat(1, self.num_pooled, 1),
            *(
                x.reshape(self.num_pooled, batch, number, -1).transpose(0, 1).flatten(1, 2).float()
                for x in (cls_logits, box_deltas)
            ),
        )

    def _proposals(self, outputs: Sequence[RPNOutput], image_sizes: Tensor) -> Tensor:
        """Return the best boxes of each image by falling score, shape (B, P, 4); zeros where there are too few."""
        rpn = self.detector.rpn
        config, boxes, scores = rpn.config, [], []
        for output, anchors in zip(outputs, rpn.anchors(outputs), strict=True):
            logits = per_anchor(output.cls_logits, 1).squeeze(2)
            best, index = logits.topk(torch.sym_min(config.test_top_n, anchors.shape[0]), dim=1)
            decoded = decode_boxes(per_anchor(output.box_deltas, 4), anchors)
            level_boxes = _clip(_take(decoded, index), image_sizes, rpn.legacy)
            scores.append(_suppressed(level_boxes, best, config.nms_iou, config.test_proposals))
            boxes.append(level_boxes)
        kept = torch.cat(scores, dim=1)
        best, index = kept.topk(torch.sym_min(config.test_proposals, kept.shape[1]), dim=1)
        return _take(torch.cat(boxes, dim=1), index).where((best > ABSENT)[..., None], 0.0)

    def _pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return the pooled regions (B * P, channels, S, S), or with ``up_compat`` those of each level in turn."""
        detector, config = self.detector, self.detector.config.roi_head
        images = torch.arange(rois.shape[0], dtype=rois.dtype, device=rois.device)[:, None, None]
        corners = torch.cat([images.expand(-1, rois.shape[1], 1), rois], dim=2).flatten(0, 1)
        levels = roi_levels(corners[:, 1:], config.num_levels, config.base_scale)
        if detector.config.legacy_boxes:
            corners = corners - corners.new_tensor([0, 0, 0, 1, 1])
        pooled = []
        for level, level_map in enumerate(features):
            is_here = (levels == level)[:, None]
            # regions of other levels shrink to a point: a large one would take long on a fine map
            chosen = corners if config.up_compat else corners * is_here
            scale = 1 / (detector.rpn.finest_stride * 2**level)
            pooled.append(roi_align(level_map.float(), chosen, config.pool_size, scale, config.sampling_ratio))
            if not config.up_compat:
                pooled[-1] = pooled[-1] * is_here[..., None, None]
        return torch.cat(pooled) if config.up_compat else torch.stack(pooled).sum(dim=0)


class FasterRCNNDetections(FasterRCNNNetwork):
    """Images and their sizes to detections, as `FasterRCNN.detect` finds them."""

    output_names = ("boxes", "scores", "labels")

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, D, 4), scores and labels (B, D); see `_best`.

        Args:
            images: float, shape (B, 3, H, W), normalised.
            image_sizes: int64, shape (B, 2), (height, width) in pixels of each image without its padding.
        """
        config = self.detector.config
        post = config.post_processing
        proposals, cls_logits, box_deltas = super().forward(images, image_sizes)
        scores = cls_logits.softmax(dim=2)[..., 1:]
        is_counted = (scores > post.score_threshold) & _has_area(proposals)[..., None]
        units = proposals.new_tensor(config.roi_head.box_stds)
        deltas = box_deltas.reshape(*cls_logits.shape, 4)[:, :, 1:] * units
        boxes = _clip(decode_boxes(deltas, proposals[:, :, None]).flatten(1, 2), image_sizes, config.legacy_boxes)
        return _best(
            boxes.reshape(*scores.shape, 4).transpose(1, 2),
            scores.where(is_counted, ABSENT).transpose(1, 2),
            post.nms_iou,
            post.max_detections,
        )


OnnxModule = RetinaNetNetwork | RetinaNetDetections | FasterRCNNNetwork


def onnx_module(detector: Detector, post_processing: bool) -> OnnxModule:
    """Return what of `detector` is exported, with the names of its inputs and outputs."""
    if isinstance(detector, RetinaNet):
        return RetinaNetDetections(detector) if post_processing else RetinaNetNetwork(detector)
    assert isinstance(detector, FasterRCNN)
    return FasterRCNNDetections(detector) if post_processing else FasterRCNNNetwork(detector)


def _best(boxes: Tensor, scores: Tensor, nms_iou: float, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what NMS within each class leaves, best first, with exactly `number` rows for each image.

    Args:
        boxes: shape (B, C, K, 4), clipped.
        scores: shape (B, C, K), -inf for candidates that do not count.
        nms_iou: of two boxes of a class that overlap more, the one of lower score is dropped.
        number: D.

    Returns:
        Boxes (B, D, 4), scores (B, D) and labels (B, D), int64. Rows at the end that hold no detection have the
        label -1, the score 0 and a box of zeros.
    """
    kept = _suppressed(boxes.flatten(0, 1), scores.flatten(0, 1), nms_iou, number)
    kept = kept.reshape(scores.shape).flatten(1)
    best, index = torch.cat([kept, kept.new_full((kept.shape[0], number), ABSENT)], dim=1).topk(number, dim=1)
    is_found = best > ABSENT
    index = index.where(is_found, 0)
    return (
        _take(boxes.flatten(1, 2), index).where(is_found[..., None], 0.0),
        best.where(is_found, 0.0),
        (index // scores.shape[2]).where(is_found, -1),
    )


def _suppressed(boxes: Tensor, scores: Tensor, nms_iou: float, number: int) -> Tensor:
    """Return the scores (G, K), -inf for boxes (G, K, 4) without area and those that NMS within a group drops."""
    scores = scores.where(_has_area(boxes), ABSENT)
    return scores.where(nms_mask_operator()(boxes, scores, nms_iou, number), ABSENT)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` (B, K) of `values` (B, N, 4), shape (B, K, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _clip(boxes: Tensor, image_sizes: Tensor, legacy: bool) -> Tensor:
    """Return `boxes` (B, N, 4) clipped to images of sizes (B, 2): `boxes.clip_boxes` with sizes that are tensors."""
    far = image_sizes.flip(1).float().repeat(1, 2)[:, None]  # width, height, width, height
    near = boxes.new_zeros(4)
    if legacy:
        near, far = boxes.new_tensor([0, 0, 1, 1]), far - boxes.new_tensor([1, 1, 0, 0])
    return boxes.maximum(near).minimum(far)
