"""RetinaNet: one-stage detector; assigner and losses are chosen by its configuration.

Shapes: B images, C classes, A anchors of a level or of all levels, R anchors of all images.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from sparsedet.detection.models.anchors import Anchors, per_anchor
from sparsedet.detection.models.assignment import IGNORED
from sparsedet.detection.models.atss import ATSS
from sparsedet.detection.models.backbones import Backbone
from sparsedet.detection.models.box_losses import BoxLoss, IoULoss, Matched
from sparsedet.detection.models.boxes import decode_boxes, encode_boxes, paired_iou
from sparsedet.detection.models.cls_losses import ClsLoss, QualityFocalLoss
from sparsedet.detection.models.detector import BaseDetectorConfig, Detector, check_num_classes
from sparsedet.detection.models.fpn import FPN
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.normalizers import at_least_one
from sparsedet.detection.models.post_processing import PostProcessing
from sparsedet.detection.models.retina_head import HeadOutput, RetinaHead, RetinaHeadConfig
from sparsedet.detection.structures import Detections, Target


class RetinaNetConfig(BaseDetectorConfig):
    """A RetinaNet; the defaults give United-Perception's ``retinanet-r18-improve``, from scratch.

    Attributes:
        box_losses: their sum is ``box_loss``.
        iou_loss_weight: factor of ``iou_loss``, which only a head with an IoU branch has.
    """

    type: Literal["retinanet"] = "retinanet"
    head: RetinaHeadConfig = RetinaHeadConfig()
    anchors: Anchors = Anchors()
    assigner: Annotated[ATSS | MaxIoU, Field(discriminator="type")] = ATSS()
    cls_loss: ClsLoss = QualityFocalLoss()
    box_losses: tuple[BoxLoss, ...] = Field(default=(IoULoss(),), min_length=1)
    iou_loss_weight: NonNegativeFloat = 1.0
    post_processing: PostProcessing = PostProcessing()

    @model_validator(mode="after")
    def _check_iou_branch(self) -> Self:
        if self.iou_loss_weight != 1 and not self.head.iou_branch:
            raise ValueError(
                f"iou_loss_weight: expected 1.0 without head.iou_branch, got {self.iou_loss_weight}. "
                "Remove it or set head.iou_branch: true."
            )
        return self

    def build(self, num_classes: int, pretrained: bool = True) -> "RetinaNet":
        """Build the detector; see `BaseDetectorConfig.build`."""
        check_num_classes(num_classes)
        self.anchors.base(2 ** self.backbone.levels[0], self.legacy_boxes)  # fails where the smallest ones vanish
        backbone = self.backbone.build(pretrained)
        neck = self.neck.build(backbone.channels, self.backbone.levels[0])
        head = self.head.build(self.neck.channels, self.neck.num_levels, self.anchors.num_per_cell, num_classes)
        return RetinaNet(backbone, neck, head, self)


class Predictions(NamedTuple):
    """Raw predictions of one level, float32, in the order of its anchors.

    Attributes:
        cls_logits: shape (B, A, C).
        box_deltas: shape (B, A, 4).
        iou_logits: shape (B, A, 1), or None without an IoU branch.
    """

    cls_logits: Tensor
    box_deltas: Tensor
    iou_logits: Tensor | None

    @property
    def scores(self) -> Tensor:
        """Scores in [0, 1], shape (B, A, C)."""
        scores = self.cls_logits.sigmoid()
        return scores if self.iou_logits is None else scores * self.iou_logits.sigmoid()


class RetinaNet(Detector):
    """Backbone, neck and head, and what turns their raw outputs into losses or detections.

    Source: Lin et al. 2017 (arXiv:1708.02002); as United-Perception's RetinaNets (up_semantics §2, 5-7).

    Attributes:
        stride: images are padded to multiples of this many pixels.
    """

    def __init__(self, backbone: Backbone, neck: FPN, head: RetinaHead, config: RetinaNetConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.config = config
        self.stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> tuple[HeadOutput, ...]:
        """Return the raw predictions of each level, finest first, for normalised images (B, 3, H, W)."""
        outputs: tuple[HeadOutput, ...] = self.head(self.neck(self.backbone(images)))
        return outputs

    def losses(self, outputs: Sequence[HeadOutput], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return ``cls_loss``, ``box_loss`` and, with an IoU branch, ``iou_loss``, float32 scalars.

        They are divided by the number of positive anchors, at least 1, unless a box loss says otherwise: by
        this process's own, or with an IoU branch by the mean over all processes, which is what United-Perception
        does (up_semantics §6).

        Args:
            outputs: what `forward` returned.
            targets: one per image, in pixels of the image that `forward` saw.
        """
        config = self.config
        anchors = self.anchors(outputs)
        levels = [self.predictions(output) for output in outputs]
        assignment = config.assigner.assign(anchors, targets, config.legacy_boxes)
        matches = assignment.matches.flatten()
        positive = (matches >= 0).nonzero().squeeze(1)
        box_of = matches[positive]
        all_anchors = torch.cat(anchors)
        matched = self._match(
            _join([level.box_deltas for level in levels])[positive],
            all_anchors[positive % len(all_anchors)],
            assignment.boxes_xyxy[box_of],
        )
        cls_loss = config.cls_loss.sum(
            _join([level.cls_logits for level in levels]),
            is_counted=matches != IGNORED,
            positive=positive,
            labels=assignment.labels[box_of],
            quality=matched.quality,
        )
        losses = {
            "cls_loss": cls_loss / matched.num_positive,
            "box_loss": torch.stack([loss.value(matched) for loss in config.box_losses]).sum(),
        }
        iou_logits = [level.iou_logits for level in levels if level.iou_logits is not None]
        if iou_logits:
            chosen = _join(iou_logits)[positive, 0]
            loss = F.binary_cross_entropy_with_logits(chosen, matched.quality, reduction="sum")
            losses["iou_loss"] = config.iou_loss_weight * loss / matched.num_positive
        return losses

    @torch.no_grad()
    def detect(self, outputs: Sequence[HeadOutput], image_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections of each image, in the order of the batch.

        Args:
            outputs: what `forward` returned, in eval mode.
            image_sizes: (height, width) in pixels of each image without its padding.
        """
        anchors = self.anchors(outputs)
        levels = [self.predictions(output) for output in outputs]
        scores = [level.scores for level in levels]
        return [
            self.config.post_processing.select(
                [level[index] for level in scores],
                [level.box_deltas[index] for level in levels],
                anchors,
                size,
                self.config.legacy_boxes,
            )
            for index, size in enumerate(image_sizes)
        ]

    def anchors(self, outputs: Sequence[HeadOutput]) -> list[Tensor]:
        """Return the anchors of each level of `outputs`, float32, shape (A, 4), in pixels."""
        maps = [output.cls_logits for output in outputs]
        return self.config.anchors.grids(maps, self.backbone.strides[0], self.config.legacy_boxes)

    def predictions(self, output: HeadOutput) -> Predictions:
        """Return the raw predictions of a level by anchor."""
        cls_logits, box_deltas, iou_logits = output
        num_classes = self.head.num_classes
        if self.head.class_major:
            batch, _, height, width = cls_logits.shape
            cls_logits = cls_logits.reshape(batch, num_classes, -1, height, width).transpose(1, 2).flatten(1, 2)
        return Predictions(
            per_anchor(cls_logits, num_classes),
            per_anchor(box_deltas, 4),
            None if iou_logits is None else per_anchor(iou_logits, 1),
        )

    def _match(self, deltas: Tensor, anchors: Tensor, true_xyxy: Tensor) -> Matched:
        """Return what box losses need of the positive anchors, given as three tensors of shape (P, 4)."""
        boxes = decode_boxes(deltas, anchors)
        quality = paired_iou(boxes.detach(), true_xyxy)
        sums = torch.stack([quality.new_tensor(len(quality)), quality.sum()])
        sums = at_least_one(sums, over_processes=self.config.head.iou_branch)
        return Matched(boxes, true_xyxy, deltas, encode_boxes(true_xyxy, anchors), quality, *sums.unbind())


def _join(levels: Sequence[Tensor]) -> Tensor:
    """Return the predictions (B, A, K) of all levels as one tensor (R, K), image by image."""
    return torch.cat(list(levels), dim=1).flatten(0, 1)
