"""RetinaNet: one-stage detector with ATSS assignment, quality focal loss and GIoU loss.

Shapes: B images, C classes, A anchors of a level, K values per anchor.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models.anchors import Anchors
from sparsedet.detection.models.atss import ATSS, IGNORED
from sparsedet.detection.models.backbones import Backbone, BackboneConfig, ResNetConfig
from sparsedet.detection.models.boxes import decode_boxes, paired_iou
from sparsedet.detection.models.detector import Detector
from sparsedet.detection.models.fpn import FPN, FPNConfig
from sparsedet.detection.models.losses import GIoULoss, QualityFocalLoss
from sparsedet.detection.models.post_processing import PostProcessing
from sparsedet.detection.models.retina_head import HeadOutput, RetinaHead, RetinaHeadConfig
from sparsedet.detection.structures import Detections, Target


class RetinaNetConfig(ConfigModel):
    """A RetinaNet; the defaults give United-Perception's ``retinanet-r18-improve``, from scratch.

    Attributes:
        legacy_boxes: keep what is special about United-Perception's inclusive pixel corners (see `boxes`),
            with which its published models were trained. Boxes that come in and go out have continuous
            corners anyway.
    """

    type: Literal["retinanet"] = "retinanet"
    backbone: BackboneConfig = ResNetConfig()
    neck: FPNConfig = FPNConfig()
    head: RetinaHeadConfig = RetinaHeadConfig()
    anchors: Anchors = Anchors()
    assigner: ATSS = ATSS()
    cls_loss: QualityFocalLoss = QualityFocalLoss()
    box_loss: GIoULoss = GIoULoss()
    post_processing: PostProcessing = PostProcessing()
    legacy_boxes: bool = False

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = self.backbone.levels
        if self.neck.num_levels < len(levels):
            raise ValueError(
                f"neck.num_levels: expected at least {len(levels)} (backbone.levels={list(levels)}), "
                f"got {self.neck.num_levels}. Raise it or give fewer backbone levels."
            )
        if levels[-1] - levels[0] != len(levels) - 1:
            raise ValueError(f"backbone.levels: expected consecutive levels, got {list(levels)}. Fill the gap.")
        return self

    def build(self, num_classes: int, pretrained: bool = True) -> "RetinaNet":
        """Build the detector.

        Args:
            num_classes: number of classes C, without background.
            pretrained: load ``backbone.weights``; False when a checkpoint is loaded next.

        Raises:
            ConfigError: `num_classes` is not positive, or the weights cannot be downloaded.
            CheckpointError: the weights cannot be read or do not fit.
        """
        if num_classes < 1:
            raise ConfigError(f"num_classes: expected at least 1, got {num_classes}. Give the data set's class count.")
        backbone = self.backbone.build(pretrained)
        neck = self.neck.build(backbone.channels, self.backbone.levels[0])
        head = self.head.build(self.neck.channels, self.neck.num_levels, self.anchors.num_per_cell, num_classes)
        return RetinaNet(backbone, neck, head, self)


class RetinaNet(Detector):
    """Backbone, neck and head, and what turns their raw outputs into losses or detections.

    Source: Lin et al. 2017 (arXiv:1708.02002); as United-Perception's ``retinanet-improve`` (up_semantics
    §2).

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
        """Return ``cls_loss`` and ``box_loss``, float32 scalars divided by the number of positive anchors.

        Args:
            outputs: what `forward` returned.
            targets: one per image, in pixels of the image that `forward` saw.
        """
        anchors = self.anchors(outputs)
        logits, deltas = self._flatten(outputs)
        assignment = self.config.assigner.assign(anchors, targets, self.config.legacy_boxes)
        matches = assignment.matches.flatten()
        positive = (matches >= 0).nonzero().squeeze(1)
        matched = matches[positive]
        all_anchors = torch.cat(anchors)
        all_deltas = torch.cat(deltas, dim=1).flatten(0, 1)
        boxes = decode_boxes(all_deltas[positive], all_anchors[positive % len(all_anchors)])
        true_boxes = assignment.boxes_xyxy[matched]
        cls_loss = self.config.cls_loss.sum(
            torch.cat(logits, dim=1).flatten(0, 1),
            is_counted=matches != IGNORED,
            positive=positive,
            labels=assignment.labels[matched],
            quality=paired_iou(boxes.detach(), true_boxes),
        )
        box_loss = self.config.box_loss.sum(boxes, true_boxes)
        normalizer = max(len(positive), 1)
        return {"cls_loss": cls_loss / normalizer, "box_loss": box_loss / normalizer}

    @torch.no_grad()
    def detect(self, outputs: Sequence[HeadOutput], image_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections of each image, in the order of the batch.

        Args:
            outputs: what `forward` returned, in eval mode.
            image_sizes: (height, width) in pixels of each image without its padding.
        """
        anchors = self.anchors(outputs)
        logits, deltas = self._flatten(outputs)
        scores = [level.sigmoid() for level in logits]
        return [
            self.config.post_processing.select(
                [level[index] for level in scores],
                [level[index] for level in deltas],
                anchors,
                size,
                self.config.legacy_boxes,
            )
            for index, size in enumerate(image_sizes)
        ]

    def anchors(self, outputs: Sequence[HeadOutput]) -> list[Tensor]:
        """Return the anchors of each level of `outputs`, float32, shape (A, 4), in pixels."""
        finest = self.backbone.strides[0]
        return [
            self.config.anchors.grid(
                output.cls_logits.shape[-2:],
                finest * 2**level,
                self.config.legacy_boxes,
                output.cls_logits.device,
            )
            for level, output in enumerate(outputs)
        ]

    def _flatten(self, outputs: Sequence[HeadOutput]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (B, A, C) and box deltas (B, A, 4) of each level, float32, in the anchors' order."""
        logits = [_per_anchor(output.cls_logits, self.head.num_classes) for output in outputs]
        return logits, [_per_anchor(output.box_deltas, 4) for output in outputs]


def _per_anchor(x: Tensor, num_values: int) -> Tensor:
    """Turn (B, anchors per cell * K, H, W) into (B, A, K), float32: no operation after it is lowered by autocast."""
    return x.float().permute(0, 2, 3, 1).reshape(len(x), -1, num_values)
