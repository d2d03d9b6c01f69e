"""Faster R-CNN: two-stage detector with a feature pyramid.

Shapes: B images, R regions of all images, P regions of an image.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor

from sparsedet.detection.models.backbones import Backbone, BackboneConfig, ResNetConfig
from sparsedet.detection.models.detector import BaseDetectorConfig, Detector, check_num_classes
from sparsedet.detection.models.fpn import FPN, FPNConfig
from sparsedet.detection.models.roi_head import BoxHead, RoIHeadConfig, RoIOutput
from sparsedet.detection.models.roi_pooling import pool_rois, roi_levels
from sparsedet.detection.models.roi_post_processing import RoIPostProcessing
from sparsedet.detection.models.rpn import RPN, RPNConfig, RPNOutput
from sparsedet.detection.structures import Detections, Target


class FasterRCNNConfig(BaseDetectorConfig):
    """A Faster R-CNN; the defaults give one on a ResNet-50 with a feature pyramid, from scratch."""

    type: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: BackboneConfig = ResNetConfig(type="resnet50", levels=(2, 3, 4, 5))
    neck: FPNConfig = FPNConfig(extra="pool", norm="none")
    rpn: RPNConfig = RPNConfig()
    roi_head: RoIHeadConfig = RoIHeadConfig()
    post_processing: RoIPostProcessing = RoIPostProcessing()

    @model_validator(mode="after")
    def _check_roi_levels(self) -> Self:
        if self.roi_head.num_levels > self.neck.num_levels:
            raise ValueError(
                f"roi_head.num_levels: expected at most neck.num_levels={self.neck.num_levels}, "
                f"got {self.roi_head.num_levels}. Lower it or raise neck.num_levels."
            )
        return self

    def build(self, num_classes: int, pretrained: bool = True) -> "FasterRCNN":
        """Build the detector; see `BaseDetectorConfig.build`."""
        check_num_classes(num_classes)
        backbone = self.backbone.build(pretrained)
        neck = self.neck.build(backbone.channels, self.backbone.levels[0])
        rpn = self.rpn.build(self.neck.channels, backbone.strides[0], self.legacy_boxes)
        box_head = self.roi_head.build(self.neck.channels, num_classes)
        return FasterRCNN(backbone, neck, rpn, box_head, self)


class FasterRCNNOutput(NamedTuple):
    """What the network makes of the images before any region is chosen.

    Attributes:
        features: maps of the neck (B, channels, H, W), finest first.
        rpn: raw predictions of the region proposal network for each of them.
    """

    features: tuple[Tensor, ...]
    rpn: tuple[RPNOutput, ...]


class FasterRCNN(Detector):
    """Backbone, neck and region proposals; the box head runs on the regions chosen in `losses` and `detect`.

    Source: Ren et al. 2015 (arXiv:1506.01497) on the pyramid of Lin et al. 2017 (arXiv:1612.03144); as
    United-Perception's ``faster_rcnn_r50_fpn_improve`` (up_semantics §2).

    Attributes:
        stride: images are padded to multiples of this many pixels.
    """

    def __init__(self, backbone: Backbone, neck: FPN, rpn: RPN, box_head: BoxHead, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.box_head = box_head
        self.config = config
        self.stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> FasterRCNNOutput:
        """Return features and raw region proposals for normalised images (B, 3, H, W)."""
        features = self.neck(self.backbone(images))
        return FasterRCNNOutput(features, self.rpn(features))

    def losses(self, outputs: FasterRCNNOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return ``rpn_cls_loss``, ``rpn_box_loss``, ``cls_loss`` and ``box_loss``, float32 scalars.

        Which anchors and regions count is drawn from torch's global generator.

        Args:
            outputs: what `forward` returned.
            targets: one per image, in pixels of the image that `forward` saw.
        """
        config = self.config
        losses = self.rpn.losses(outputs.rpn, targets)
        sizes = [target.image_size for target in targets]
        proposals = self.rpn.proposals(outputs.rpn, sizes, config.rpn.train_top_n, config.rpn.train_proposals)
        samples = config.roi_head.sample(proposals, targets, config.legacy_boxes)
        output = self.predict(outputs.features, samples.rois)
        return {**losses, **config.roi_head.losses(output, samples)}

    @torch.no_grad()
    def detect(self, outputs: FasterRCNNOutput, image_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections of each image, in the order of the batch.

        Args:
            outputs: what `forward` returned, in eval mode.
            image_sizes: (height, width) in pixels of each image without its padding.
        """
        config = self.config
        proposals = self.rpn.proposals(outputs.rpn, image_sizes, config.rpn.test_top_n, config.rpn.test_proposals)
        every_level = config.roi_head.up_compat
        detections = []
        for index, (rois, size) in enumerate(zip(proposals, image_sizes, strict=True)):
            # image by image, as the pooled regions of a batch take much memory
            output = self.predict([x[index : index + 1] for x in outputs.features], [rois], every_level)
            rois = rois.repeat(len(output.cls_logits) // max(len(rois), 1), 1)
            detections.append(
                config.post_processing.select(output, rois, config.roi_head.box_stds, size, config.legacy_boxes)
            )
        return detections

    def predict(self, features: Sequence[Tensor], rois: Sequence[Tensor], every_level: bool = False) -> RoIOutput:
        """Return the box head's predictions for the regions (P, 4) of each image, in their order.

        The box head runs in the precision that the features were computed in.

        Args:
            features: maps of the neck, finest first.
            rois: of each image, float32, shape (P, 4), in pixels.
            every_level: pool every region from every level: R predictions for the finest level, R for the next
                and so on.
        """
        config = self.config.roi_head
        levels = None if every_level else roi_levels(torch.cat(list(rois)), config.num_levels, config.base_scale)
        pooled = pool_rois(
            features[: config.num_levels],
            rois,
            levels,
            self.rpn.finest_stride,
            config.pool_size,
            config.sampling_ratio,
            self.config.legacy_boxes,
        )
        dtype = features[0].dtype
        lowered = dtype if dtype in (torch.bfloat16, torch.float16) else None
        with torch.autocast(pooled.device.type, lowered, enabled=lowered is not None):
            output: RoIOutput = self.box_head(pooled)
        return output

    def run_all(self, images: Tensor) -> tuple[tuple[RPNOutput, ...], RoIOutput]:
        """Run every layer as inference on `images` (B, 3, H, W) would, so that layers can be counted.

        The box head runs on exactly ``rpn.test_proposals`` regions per image, where inference runs it on as
        many or fewer (with ``roi_head.up_compat`` on as many for each level).
        """
        outputs = self(images)
        height, width = images.shape[-2:]
        whole = torch.tensor([[0.0, 0.0, width, height]], device=images.device)
        rois = whole.expand(self.config.rpn.test_proposals, 4)
        return outputs.rpn, self.predict(outputs.features, [rois] * len(images))
