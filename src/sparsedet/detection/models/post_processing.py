"""From scores and boxes of all anchors to the detections of an image.

Shapes: A anchors of a level, C classes.
"""

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.boxes import decode_boxes
from sparsedet.detection.models.suppression import clip_and_suppress
from sparsedet.detection.structures import Detections

UP_SMALL_LEVEL = 120  # number of anchors up to which United-Perception keeps all scores of a level


class PostProcessing(ConfigModel):
    """Score threshold, best anchors of each class and level, NMS per class, best detections.

    Source: United-Perception's predictor `base` and merger `retina` (up_semantics §7.1–7.3), without its rows
    of zeros.

    Attributes:
        score_threshold: detections have a higher score.
        top_n: anchors kept before NMS, per class and level.
        nms_iou: of two boxes of a class that overlap more, the one of lower score is dropped.
        max_detections: per image, over all classes.
        up_compat: the score threshold does not act on levels of at most 120 anchors, as in United-Perception.
    """

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    top_n: PositiveInt = 1000
    nms_iou: float = Field(default=0.5, gt=0, le=1)
    max_detections: PositiveInt = 100
    up_compat: bool = False

    def select(
        self,
        scores: Sequence[Tensor],
        box_deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        image_size: tuple[int, int],
        legacy: bool,
    ) -> Detections:
        """Return the detections of one image, by falling score.

        Args:
            scores: per level, float32, shape (A, C), in [0, 1].
            box_deltas: per level, float32, shape (A, 4).
            anchors: per level, float32, shape (A, 4), in pixels.
            image_size: (height, width) in pixels to which boxes are clipped.
            legacy: see `boxes`.
        """
        found = [self._candidates(*level) for level in zip(scores, box_deltas, anchors, strict=True)]
        boxes, kept_scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = clip_and_suppress(boxes, kept_scores, labels, image_size, self.nms_iou, legacy)
        return Detections(*(part[: self.max_detections] for part in kept))

    def _candidates(self, scores: Tensor, box_deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of a level's best anchors of each class."""
        best, index = scores.topk(min(self.top_n, len(scores)), dim=0)
        has_threshold = not self.up_compat or len(scores) > UP_SMALL_LEVEL
        is_kept = best > self.score_threshold if has_threshold else torch.ones_like(best, dtype=torch.bool)
        rows = index[is_kept]
        return decode_boxes(box_deltas[rows], anchors[rows]), best[is_kept], is_kept.nonzero()[:, 1]
