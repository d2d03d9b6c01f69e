"""Each of the four published detectors, narrow and from scratch, learns eight images by heart."""

import json
import os
from pathlib import Path

import pytest

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.evaluation import evaluate_checkpoint
from sparsedet.benchmark.suite import load_suite, run_suite

RECIPE = """\
data:
  root: {root}
  train: {{annotations: eight.json, images: images}}
  val: {{annotations: eight.json, images: images}}
  train_transforms: [{{type: resize, size: [128, 128]}}]
  val_transforms: [{{type: resize, size: [128, 128]}}]
  cache: true
training: {{steps: {steps}, batch_size: 8, optimizer: {{type: adamw, lr: {lr}}}}}
detector:
"""
DETECTORS = {
    "retinanet-r50": """\
  type: retinanet
  backbone: {type: resnet50, width: 16}
  neck: {channels: 32, num_levels: 3, norm: none}
  head: {num_convs: 2, norm: none, init_std: 0.01}
  anchors: {scales: [4, 5.0396842, 6.34960421], ratios: [0.5, 1, 2]}
  assigner: {type: max_iou, positive_iou: 0.5, negative_iou: 0.4, ignore_iou: 0.5, low_quality: true}
  cls_loss: {type: focal}
  box_losses: [{type: l1}]
""",
    "retinanet-improve-r18": """\
  type: retinanet
  backbone: {type: resnet18, width: 16}
  neck: {channels: 32, num_levels: 3}
  head: {num_convs: 2}
  anchors: {scales: [3.0, 4.5]}
""",
    "retinanet-improve-cos-iou-r18": """\
  type: retinanet
  backbone: {type: resnet18, width: 16}
  neck: {channels: 32, num_levels: 3}
  head: {num_convs: 2, iou_branch: true, class_major: true}
  anchors: {scales: [3.0, 4.5]}
  box_losses: [{type: giou, by_quality: true}, {type: l1, mean: true}]
  post_processing: {nms_iou: 0.65}
""",
    "faster-rcnn-r50": """\
  type: faster_rcnn
  backbone: {type: resnet50, width: 16, levels: [2, 3, 4, 5]}
  neck: {channels: 32, extra: pool, norm: none}
  rpn: {test_proposals: 100, train_proposals: 200}
  roi_head: {channels: 128, sampler: {batch_size: 64, positive_share: 0.5}}
""",
}
TRAINING = {  # steps, peak learning rate
    "retinanet-r50": (220, 2e-3),
    "retinanet-improve-r18": (160, 4e-3),
    "retinanet-improve-cos-iou-r18": (160, 4e-3),
    "faster-rcnn-r50": (220, 2e-3),
}


@pytest.fixture(scope="module")
def eight_images(tmp_path_factory):
    """Eight images of playing cards where SPARSEDET_CARDS names their folder, else of the embedded digit scenes."""
    folder = tmp_path_factory.mktemp("eight")
    cards = os.environ.get("SPARSEDET_CARDS")
    if cards:
        root = Path(cards)
    else:
        from sparsedet.detection.data.digit_scenes import make_digit_scenes

        root = make_digit_scenes(folder / "digits")
    content = json.loads((root / "annotations" / "train.json").read_text())
    content["images"] = content["images"][:: len(content["images"]) // 8][:8]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (folder / "eight.json").write_text(json.dumps(content))
    (folder / "images").symlink_to((root / "images").absolute())
    return folder


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", DETECTORS)
def test_eight_images_are_learned_by_heart(name, eight_images, tmp_path):
    steps, lr = TRAINING[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=eight_images, steps=steps, lr=lr) + DETECTORS[name])
    (record,) = run_suite(load_suite(recipe), tmp_path / "run", "cpu", Console(quiet=True))
    assert record.metrics["ap"] >= 0.9
    again = evaluate_checkpoint(tmp_path / "run" / "recipe" / "dense" / "checkpoint.pt", device_name="cpu")
    assert again == record.metrics
