"""Our detectors' names, shapes and frozen weights against the key lists of United-Perception's own models."""

import json
import re
from pathlib import Path

import pytest
import torch

from sparsedet.benchmark.upstream.names import upstream_names
from sparsedet.detection.models import FasterRCNNConfig, FPNConfig, ResNetConfig, RetinaHeadConfig, RetinaNetConfig
from sparsedet.detection.models.anchors import Anchors

GOLDEN = Path(__file__).parent / "golden"


def improve(frozen_stages=2, **head):
    return RetinaNetConfig(backbone=ResNetConfig(frozen_stages=frozen_stages), head=RetinaHeadConfig(**head))


def faster(norm, frozen_stages=2):
    backbone = ResNetConfig(type="resnet50", levels=(2, 3, 4, 5), norm=norm, frozen_stages=frozen_stages)
    return FasterRCNNConfig(backbone=backbone)


R50_1X = RetinaNetConfig(
    backbone=ResNetConfig(type="resnet50", norm="batch_norm_fixed_stats", frozen_stages=2),
    neck=FPNConfig(norm="none"),
    head=RetinaHeadConfig(norm="none"),
    anchors=Anchors(ratios=(0.5, 1, 2), scales=(4, 5, 6)),
)
DETECTORS = {
    "retinanet_r50_1x": R50_1X,
    "retinanet_r18_improve": improve(),
    "retinanet_r18_improve_cos_iou": improve(iou_branch=True),
    "faster_rcnn_r50_fpn_improve": faster("sync_batch_norm"),
    "sparse_retinanet_r18_improve_amba": improve(),
    "sparse_retinanet_r18_improve_ampere": improve(frozen_stages=0),
    "sparse_faster_rcnn_r50_fpn_amba": faster("batch_norm_fixed_stats", frozen_stages=0),
    "sparse_faster_rcnn_r50_fpn_ampere": faster("batch_norm_fixed_stats", frozen_stages=0),
}
SPARSE_RUN = re.compile(r"^(backbone_neck_roi_head\.|bbox_head\.(?=bbox_head\.))")


def golden(name):
    return json.loads((GOLDEN / f"golden_{name}_keys.json").read_text())


@pytest.mark.parametrize("name", DETECTORS)
def test_names_shapes_types_and_frozen_weights_are_united_perceptions(name):
    with torch.device("meta"):
        model = DETECTORS[name].build(80, pretrained=False)
    theirs = {SPARSE_RUN.sub("", row["key"]): row for row in golden(name)["keys"]}
    names = upstream_names(model)
    assert sorted(key for keys in names.values() for key in keys) == sorted(theirs)
    parameters = dict(model.named_parameters())
    for key, value in model.state_dict().items():
        first, *aliases = names[key]
        for upstream in names[key]:
            assert theirs[upstream]["shape"] == list(value.shape), upstream
            assert f"torch.{theirs[upstream]['dtype']}" == str(value.dtype), upstream
            trained = parameters[key].requires_grad if key in parameters else None
            assert theirs[upstream]["requires_grad"] is trained, upstream
        assert [theirs[alias]["alias_of"] for alias in aliases] == [theirs[first]["key"]] * len(aliases)
    trained = sum(value.numel() for value in parameters.values() if value.requires_grad)
    assert trained == golden(name)["n_trainable_elements"]


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_norms_keep_their_statistics_in_training(name):
    with torch.device("meta"):
        model = DETECTORS[name].build(80, pretrained=False).train()
    names = upstream_names(model)
    fixed = {key.removesuffix(".running_mean") for key in names if key.endswith(".running_mean")}
    fixed = {names[f"{key}.running_mean"][0] for key in fixed if not model.get_submodule(key).training}
    expected = {SPARSE_RUN.sub("", f"{key}.running_mean") for key in golden(name)["modules_not_training_in_train_mode"]}
    assert fixed == expected
