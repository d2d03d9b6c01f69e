"""From the predictions of a second stage to the detections of an image.

Shapes: R regions, C classes.
"""

from collections.abc import Sequence

from pydantic import Field, PositiveInt
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.detection.models.boxes import decode_boxes
from sparsedet.detection.models.roi_head import RoIOutput
from sparsedet.detection.models.suppression import clip_and_suppress
from sparsedet.detection.structures import Detections

FIRST_CANDIDATES = 10  # times `max_detections`: with how many of the best candidates NMS starts
MORE_CANDIDATES = 4  # times as many in each further try


class RoIPostProcessing(ConfigModel):
    """Score threshold, NMS per class, best detections.

    Source: United-Perception's predictor `faster` (up_semantics §7.5), which returns the same detections in the
    order of their classes.

    Attributes:
        score_threshold: detections have a higher score.
        nms_iou: of two boxes of a class that overlap more, the one of lower score is dropped.
        max_detections: per image, over all classes.
    """

    score_threshold: float = Field(default=0.0, ge=0, lt=1)
    nms_iou: float = Field(default=0.5, gt=0, le=1)
    max_detections: PositiveInt = 100

    def select(
        self,
        output: RoIOutput,
        rois_xyxy: Tensor,
        box_stds: Sequence[float],
        image_size: tuple[int, int],
        legacy: bool,
    ) -> Detections:
        """Return the detections of one image, by falling score.

        Args:
            output: predictions for the regions.
            rois_xyxy: float32, shape (R, 4), in pixels.
            box_stds: units of the predicted deltas.
            image_size: (height, width) in pixels to which boxes are clipped.
            legacy: see `boxes`.
        """
        scores = output.cls_logits.float().softmax(dim=1)[:, 1:]
        rows, labels = (scores > self.score_threshold).nonzero(as_tuple=True)
        scores, order = scores[rows, labels].sort(descending=True, stable=True)
        rows, labels = rows[order], labels[order]
        deltas = output.box_deltas.view(*output.cls_logits.shape, 4)
        units = rois_xyxy.new_tensor(box_stds)
        # Which of the best n candidates NMS keeps does not depend on the others, and of the R * C candidates
        # few are needed: start with the best ones and take more only while too few detections are left.
        number = FIRST_CANDIDATES * self.max_detections
        while True:
            row, label, score = rows[:number], labels[:number], scores[:number]
            boxes = decode_boxes(deltas[row, label + 1].float() * units, rois_xyxy[row])
            kept = clip_and_suppress(boxes, score, label, image_size, self.nms_iou, legacy)
            if len(kept[0]) >= self.max_detections or number >= len(scores):
                return Detections(*(part[: self.max_detections] for part in kept))
            number *= MORE_CANDIDATES
