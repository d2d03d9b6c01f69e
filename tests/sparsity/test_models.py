"""Classifiers and detectors of torchvision and timm: found, told apart and pruned as they are."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsedet.sparsity import LevelWise, Sparsifier, SparsityConfig, Targets, profile_model
from sparsedet.sparsity.weights import find_weights

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
ATEN = torch.ops.aten


def torchvision_model(name):
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=5)


def torchvision_detector(name, **fields):
    return lambda: torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **fields)


def timm_model(name):
    def build():
        timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm")
        return timm.create_model(name, pretrained=False, num_classes=5)

    return build


def vit():
    return torchvision.models.VisionTransformer(64, 8, 2, 2, 16, 32, num_classes=5)


def swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=5)


SMALL = {"min_size": 64, "max_size": 64}
SSD_HEADS = [f"head.{kind}_head.module_list.{level}" for kind in ("classification", "regression") for level in range(6)]
BOX_HEADS = [
    *("rpn.head.cls_logits", "rpn.head.bbox_pred"),
    *("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
]
MODELS = {  # how to build it, its stem, its prediction layers
    "resnet": (torchvision_model("resnet18"), "conv1", ["fc"]),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), "features.0.0", ["classifier.1"]),
    "regnet": (torchvision_model("regnet_y_400mf"), "stem.0", ["fc"]),
    "vit": (vit, "conv_proj", ["heads.head"]),
    "swin": (swin, "features.0.0", ["head"]),
    "timm_resnet": (timm_model("resnet10t"), "conv1.0", ["fc"]),
    "timm_mobilenet_v3": (timm_model("mobilenetv3_small_050"), "conv_stem", ["classifier"]),
    "faster_rcnn_mobilenet": (
        torchvision_detector("fasterrcnn_mobilenet_v3_large_320_fpn", **SMALL),
        "backbone.body.0.0",
        BOX_HEADS,
    ),
    "faster_rcnn": (torchvision_detector("fasterrcnn_resnet50_fpn", **SMALL), "backbone.body.conv1", BOX_HEADS),
    "retinanet": (
        torchvision_detector("retinanet_resnet50_fpn", **SMALL),
        "backbone.body.conv1",
        ["head.classification_head.cls_logits", "head.regression_head.bbox_reg"],
    ),
    "ssd": (torchvision_detector("ssd300_vgg16"), "backbone.features.0", SSD_HEADS),
    "ssdlite": (
        torchvision_detector("ssdlite320_mobilenet_v3_large"),
        "backbone.features.0.0.0",
        [f"{name}.1" for name in SSD_HEADS],
    ),
}
SLOW = ("faster_rcnn", "ssd")
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def case(request):
    build, stem, predictions = MODELS[request.param]
    torch.manual_seed(0)
    return build().eval(), f"{stem}.weight", {f"{name}.weight" for name in predictions}


def expected_names(model):
    """All candidates, by the classes of the layers alone."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield f"{name}.in_proj_weight"
        if isinstance(module, LAYERS):
            yield f"{name}.weight"


def test_pruning(case):
    model, stem, predictions = case
    names = list(expected_names(model))
    assert sorted(weight.name for weight in find_weights(model)) == sorted(names)
    config = SparsityConfig(
        targets=Targets(exclude=("preset:stem", "preset:prediction")), schedule=LevelWise(levels=(0.3, 0.5))
    )
    keys = list(model.state_dict())
    sparsifier = Sparsifier(model, config, (IMAGES,))
    reasons = {row.name: row.reason for row in sparsifier.selection}
    assert [name for name, reason in reasons.items() if reason == "exclude 'preset:stem'"] == [stem]
    assert {name for name, reason in reasons.items() if reason == "exclude 'preset:prediction'"} == predictions
    sparsifier.prune_(1)
    weights = {name: model.get_parameter(name) for name in names}
    total = sum(weight.numel() for weight in weights.values())
    pruned = sum(int((~mask).sum()) for mask in sparsifier.masks.values())
    assert pruned == round(0.5 * total)
    assert all((weights[name] == 0)[~mask].all() for name, mask in sparsifier.masks.items())
    assert not sparsifier.masks.keys() & {stem, *predictions}
    assert list(model.state_dict()) == keys


def test_macs_are_half_of_the_flops_that_torch_counts(case):
    model = case[0]
    with FlopCounterMode(display=False) as counter:
        model(IMAGES)
    # Products of attention are counted by torch, not by us: they have no weight.
    of_weights = (ATEN.mm, ATEN.addmm, ATEN.convolution)
    flops = sum(value for key, value in counter.get_flop_counts()["Global"].items() if key in of_weights)
    assert sum(profile_model(model, (IMAGES,)).num_macs.values()) * 2 == flops
