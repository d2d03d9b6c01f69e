"""Dense detectors.

A detector is configured by a frozen model and built for a number of classes; its network part (images to raw
head outputs) is separate from target assignment, losses and post-processing:

    >>> import torch
    >>> from sparsedet.detection.structures import Target
    >>> config = RetinaNetConfig(backbone=ResNetConfig(width=24), neck=FPNConfig(channels=48))
    >>> model = config.build(num_classes=4)
    >>> images = torch.zeros(2, 3, 128, 128)  # height and width are multiples of model.stride
    >>> boxes, labels, ignore = torch.tensor([[20.0, 30.0, 80.0, 90.0]]), torch.tensor([3]), torch.zeros(0, 4)
    >>> target = Target(boxes, labels, ignore, image_size=(128, 128))
    >>> losses = model.losses(model(images), [target, target])
    >>> sorted(losses)
    ['box_loss', 'cls_loss']
    >>> detections = model.eval().detect(model(images), [(128, 128), (128, 128)])

Names that recipes rely on to leave the first and the last convolutions dense: the stem is ``backbone.conv1``
(ResNet) or ``backbone.features.0.0`` (MobileNetV2), the predictors are ``head.cls_pred``, ``head.box_pred``
and, with an IoU branch, ``head.iou_pred``. Below ``backbone.`` the names are torchvision's. The convolutions of
the neck are ``neck.lateral.<level>``, ``neck.output.<level>`` and ``neck.extra.<level>``, where level l has
stride 2 ** l; those of the head that all levels share are ``head.cls_tower.convs.<i>`` and
``head.box_tower.convs.<i>``. Instead of ``head`` a Faster R-CNN has ``rpn.conv`` and ``box_head.fc1`` and
``fc2``, with the predictors ``cls_pred`` and ``box_pred`` beside each.
"""

from typing import Annotated

from pydantic import Field

from sparsedet.detection.models.anchors import Anchors
from sparsedet.detection.models.atss import ATSS
from sparsedet.detection.models.backbones import MobileNetV2Config, ResNetConfig
from sparsedet.detection.models.box_losses import IoULoss, L1Loss
from sparsedet.detection.models.cls_losses import FocalLoss, QualityFocalLoss
from sparsedet.detection.models.detector import Detector
from sparsedet.detection.models.faster_rcnn import FasterRCNN, FasterRCNNConfig, FasterRCNNOutput
from sparsedet.detection.models.fpn import FPNConfig
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.post_processing import PostProcessing
from sparsedet.detection.models.retina_head import HeadOutput, RetinaHeadConfig
from sparsedet.detection.models.retinanet import RetinaNet, RetinaNetConfig

DETECTORS: dict[str, type[RetinaNetConfig] | type[FasterRCNNConfig]] = {
    "faster_rcnn": FasterRCNNConfig,
    "retinanet": RetinaNetConfig,
}
DetectorConfig = Annotated[RetinaNetConfig | FasterRCNNConfig, Field(discriminator="type")]

__all__ = [
    "ATSS",
    "DETECTORS",
    "Anchors",
    "Detector",
    "DetectorConfig",
    "FPNConfig",
    "FasterRCNN",
    "FasterRCNNConfig",
    "FasterRCNNOutput",
    "FocalLoss",
    "HeadOutput",
    "IoULoss",
    "L1Loss",
    "MaxIoU",
    "MobileNetV2Config",
    "PostProcessing",
    "QualityFocalLoss",
    "ResNetConfig",
    "RetinaHeadConfig",
    "RetinaNet",
    "RetinaNetConfig",
]
