"""United-Perception's own eight files, as they are; the folder is in SPARSEDET_UP_CONFIGS."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.levels import split_levels
from sparsedet.benchmark.recipe import load_recipe
from sparsedet.benchmark.suite import load_suite
from sparsedet.common.config import dump, to_yaml
from sparsedet.common.shipped import find_config
from sparsedet.detection.trainer import Trainer
from sparsedet.sparsity.weights import find_weights

GOLDEN = json.loads((Path(__file__).parents[2] / "detection" / "golden" / "golden_optimization.json").read_text())
C1, C2, C3, C4 = (
    f"{name}.yaml"
    for name in (
        "retinanet-r50_1x",
        "retinanet-r18-improve",
        "retinanet-r18-improve_cos_iou",
        "faster_rcnn_r50_fpn_improve",
    )
)
C2_LEVELS, C2_24, C4_LEVELS, C4_24 = (
    f"sparse/{name}_sparse.yaml"
    for name in (
        "retinanet-r18-improve_amba",
        "retinanet-r18-improve_ampere",
        "faster_rcnn_r50_fpn_amba",
        "faster_rcnn_r50_fpn_ampere",
    )
)
ALL = (C1, C2, C3, C4, C2_LEVELS, C2_24, C4_LEVELS, C4_24)
OFFICIAL = {  # how our own recipes of the published detectors are got from United-Perception's files
    C1: ("retinanet_r50", 2),
    C2: ("retinanet_improve_r18", 8),
    C3: ("retinanet_improve_cos_iou_r18", 8),
    C4: ("faster_rcnn_r50", 2),
}
RATES = {
    "retinanet_r50_1x": C1,
    "retinanet_r18_improve": C2,
    "retinanet_r18_improve_cos_iou": C3,
    "faster_rcnn_r50_fpn_improve": C4,
    "sparse_retinanet_r18_ampere": C2_24,
    "sparse_faster_ampere": C4_24,
    "sparse_retinanet_r18_amba": C2_LEVELS,
    "sparse_faster_amba": C4_LEVELS,
}


def at(node, path):
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


@pytest.fixture(params=ALL)
def path(request, up_configs):
    return up_configs / request.param


def test_every_key_ends_in_a_note(path, translate, uncovered):
    _, notes = translate(path)
    assert uncovered(path, notes) == []


def test_it_loads_alone_and_as_a_suite_and_its_translation_loads_back_equal(path, tmp_path):
    recipe = load_recipe(path).recipe
    (alone,) = load_suite(path).recipes
    assert alone.recipe == recipe
    (tmp_path / "native.yaml").write_text(to_yaml(dump(recipe)))
    assert load_recipe(tmp_path / "native.yaml").recipe == recipe


def test_its_detector_is_built(path):
    recipe = load_recipe(path).recipe
    assert recipe.data.num_classes == 80
    with torch.device("meta"):
        model = recipe.detector.build(80, pretrained=False)
        model.train()
        assert model(torch.zeros(2, 3, 128, 128))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (C1, {
            "seed": 131, "initial_checkpoint": None, "sparsity": None,
            "detector.type": "retinanet", "detector.legacy_boxes": True,
            "detector.backbone.type": "resnet50", "detector.backbone.norm": "batch_norm_fixed_stats",
            "detector.backbone.frozen_stages": 2, "detector.neck.norm": "none", "detector.head.norm": "none",
            "detector.anchors.scales": [4, 5.0396842, 6.34960421], "detector.assigner.type": "max_iou",
            "detector.assigner.negative_iou": 0.4, "detector.assigner.low_quality_iou": 0,
            "detector.cls_loss.type": "focal", "detector.cls_loss.alpha": 0.25,
            "detector.box_losses": [{"type": "l1", "weight": 1, "mean": False}],
            "training.epochs": 12, "training.batch_size": 2, "training.optimizer.lr": 0.000625,
            "training.lr_schedule.warmup_steps": 500, "training.lr_schedule.warmup_epochs": 1,
            "training.lr_schedule.warmup_start": 0.001, "training.lr_schedule.milestones": [8, 11],
            "data.train_transforms.1.shorter": [640, 672, 704, 736, 768, 800],
        }),
        (C2, {
            "detector.backbone.type": "resnet18", "detector.backbone.norm": "batch_norm",
            "detector.neck.norm": "batch_norm", "detector.head.norm": "batch_norm", "detector.head.iou_branch": False,
            "detector.anchors.scales": [6, 8], "detector.assigner.top_n": 18,
            "detector.cls_loss.type": "quality_focal", "detector.box_losses.0.type": "giou",
            "detector.post_processing.nms_iou": 0.5, "training.batch_size": 8, "training.lr_schedule.warmup_epochs": 2,
            "data.train_transforms.1.fill": [123, 116, 103], "data.train_transforms.3.size": [1024, 1024],
            "data.crowds": "drop", "data.pad_multiple": 32, "data.sampler.boundaries": [1],
        }),
        (C3, {
            "detector.head.iou_branch": True, "detector.head.class_major": True,
            "detector.box_losses": [{"type": "giou", "weight": 1, "by_quality": True},
                                    {"type": "l1", "weight": 1, "mean": True}],
            "detector.post_processing.nms_iou": 0.65, "training.ema": None, "training.lr_schedule.type": "cosine",
            "training.lr_schedule.warmup_steps": 1000, "training.lr_schedule.epochs": 100,
            "training.lr_schedule.final_lr": 0.00001,
        }),
        (C4, {
            "detector.type": "faster_rcnn", "detector.backbone.levels": [2, 3, 4, 5],
            "detector.backbone.norm": "sync_batch_norm", "detector.backbone.sync_group_size": 8,
            "detector.rpn.assigner.low_quality_iou": 0.3, "detector.rpn.train_top_n": 2000,
            "detector.rpn.test_top_n": 1000, "detector.roi_head.cls_weight": 4, "detector.roi_head.box_weight": 4.5,
            "detector.roi_head.up_compat": False, "data.train_transforms.1.margin": 512,
            "training.lr_schedule.warmup_start": "unscaled", "training.lr_schedule.warmup_shape": "linear",
        }),
        (C2_LEVELS, {
            "training.epochs": 48, "sparsity.schedule.levels": [0.3, 0.4, 0.5, 0.6],
            "sparsity.allocation.type": "energy",
            "sparsity.targets.include_frozen": True, "detector.backbone.frozen_stages": 2, "write_analysis": False,
        }),
        (C2_24, {
            "training.epochs": 12, "sparsity.pattern.type": "n_m", "sparsity.schedule.type": "one_shot",
            "sparsity.targets.include_frozen": False, "detector.backbone.frozen_stages": 0,
        }),
        (C4_LEVELS, {
            "detector.backbone.norm": "batch_norm_fixed_stats", "detector.roi_head.cls_weight": 1,
            "training.lr_schedule.warmup_shape": "exponential", "training.lr_schedule.warmup_steps": 500,
            "training.lr_schedule.warmup_start": "unscaled", "data.train_transforms.0.type": "horizontal_flip",
        }),
        (C4_24, {
            "training.epochs": 20, "training.lr_schedule.milestones": [14, 18], "sparsity.pattern.eligibility": "asp",
        }),
    ],
)  # fmt: skip
def test_what_they_mean(name, expected, up_configs):
    recipe = dump(load_recipe(up_configs / name).recipe)
    assert {key: at(recipe, key) for key in expected} == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_they_mean_what_our_own_recipes_of_the_published_detectors_say(name, up_configs):
    own, batch = OFFICIAL[name]
    ours = load_recipe(find_config(own)).recipe
    theirs = load_recipe(
        up_configs / name,
        (
            f"training.batch_size={16 * batch}",
            f"data.root={ours.data.root}",
            f"data.num_train_images={ours.data.num_train_images}",
            f"detector.backbone.weights={ours.detector.backbone.weights}",
            *(f"data.{split}.annotations={getattr(ours.data, split).annotations}" for split in ("train", "val")),
            *(f"data.{split}.images={getattr(ours.data, split).images}" for split in ("train", "val")),
            *(["detector.roi_head.assigner.low_quality_iou=0"] if name == C4 else []),  # says what nothing reads
        ),
    ).recipe
    plain = ours.model_copy(update={"published_ap": None, "assumed": {}})
    assert dump(theirs) == dump(plain)


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_are_those_of_united_perceptions_own_code(name, up_configs):
    golden = GOLDEN["lr"].get(name) or GOLDEN["lr_amba_restart"][name]
    batch = golden["world_size"] * golden["batch_size"]
    recipe = load_recipe(up_configs / RATES[name], (f"training.batch_size={batch}", "up_compat=true")).recipe
    assert recipe.training.forward_batch_size == golden["batch_size"]
    trainer = Trainer(nn.Linear(1, 1), recipe.training, golden["iters_per_epoch"] * batch, torch.device("cpu"))
    rates = {
        step: trainer.lr(step, level)
        for level in split_levels(recipe.sparsity if "amba" in name else None, trainer.total_steps)
        for step in range(level.first_step, level.last_step)
    }
    assert {step: rates[int(step)] for step in golden["lr_used_at_iter"]} == pytest.approx(
        golden["lr_used_at_iter"], rel=1e-12
    )


def test_layers_are_left_out_by_the_names_of_united_perceptions_modules(up_configs):
    kwargs = "sparsity.scheduler.kwargs"
    given = (f"{kwargs}.no_prune_layer=backbone.layer0.0", f"{kwargs}.no_prune_keyword=_subnet.0.")
    recipe = load_recipe(up_configs / C2_LEVELS, given).recipe
    towers = [f"head.{tower}_tower.convs.{index}" for tower in ("cls", "box") for index in range(4)]
    assert sorted(recipe.sparsity.targets.exclude) == sorted(["backbone.conv1", *towers])
    model = recipe.detector.build(80, pretrained=False)
    rows = recipe.sparsity.targets.select(find_weights(model), recipe.sparsity.pattern)
    assert sum(not row.chosen for row in rows) == 9
