"""What is traced for ONNX, run as it is in PyTorch, against `Detector.detect`; files are in test_onnx_export.py."""

import pytest
import torch
from torch import nn

from sparsedet.benchmark.onnx_modules import onnx_module
from sparsedet.detection.models import PostProcessing

SIZES = [(60, 96), (64, 81), (35, 96)]


def spread(detector):
    """Give the predictors weights that make scores and boxes differ, so that NMS and thresholds have work."""
    for name, module in detector.named_modules():
        if name.endswith(("cls_pred", "box_pred", "iou_pred")):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.normal_(module.bias, std=0.5)
    return detector.eval()


def check(detector, images, sizes):
    module = onnx_module(detector, post_processing=True).eval()
    with torch.no_grad():
        boxes, scores, labels = module(images, torch.tensor(sizes))
        expected = detector.detect(detector(images), sizes)
    number = detector.config.post_processing.max_detections
    assert (boxes.shape, scores.shape, labels.shape) == ((len(sizes), number, 4), *[(len(sizes), number)] * 2)
    counts = []
    for index, found in enumerate(expected):
        count = len(found.labels)
        counts.append(count)
        ours = torch.cat([labels[index, :count, None], 1e3 * scores[index, :count, None], boxes[index, :count]], dim=1)
        theirs = torch.cat([found.labels[:, None], 1e3 * found.scores[:, None], found.boxes_xyxy], dim=1)
        distance, partner = (ours[:, None] - theirs).abs().amax(dim=2).min(dim=1)  # nearly equal scores may swap
        assert distance.max() < 2e-3
        assert len(set(partner.tolist())) == count
        assert (ours[1:, 1] <= ours[:-1, 1]).all()
        assert (labels[index, count:] == -1).all()
        assert not scores[index, count:].any()
        assert not boxes[index, count:].any()
    return counts


def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4"])
def test_detections_are_those_of_the_detector(name, legacy, small_detectors, build):
    config = small_detectors[name].model_copy(update={"legacy_boxes": legacy})
    counts = check(spread(build(config, 0)), images(), SIZES)
    assert min(counts) > 10


@pytest.mark.parametrize("up_compat", [False, True])
def test_few_detections_thresholds_and_limits(up_compat, small_detectors, build):
    post = PostProcessing(score_threshold=0.4, top_n=7, max_detections=300, nms_iou=0.3, up_compat=up_compat)
    config = small_detectors["C2"].model_copy(update={"post_processing": post})
    counts = check(spread(build(config, 0)), images(), SIZES)
    assert 0 < min(counts) < 300
    tight = config.model_copy(update={"post_processing": post.model_copy(update={"max_detections": 3})})
    assert check(spread(build(tight, 0)), images(), SIZES) == [3, 3, 3]


def test_every_region_on_every_level(small_detectors, build):
    head = small_detectors["C4"].roi_head.model_copy(update={"up_compat": True})
    rpn = small_detectors["C4"].rpn.model_copy(update={"test_proposals": 50})
    config = small_detectors["C4"].model_copy(update={"roi_head": head, "rpn": rpn, "legacy_boxes": True})
    detector = spread(build(config, 0))
    assert min(check(detector, images(), SIZES)) > 10
    proposals, cls_logits, box_deltas = onnx_module(detector, post_processing=False)(images(), torch.tensor(SIZES))
    assert (proposals.shape, cls_logits.shape, box_deltas.shape) == ((3, 200, 4), (3, 200, 3), (3, 200, 12))


def test_raw_outputs_of_a_one_stage_detector(small_detectors, build):
    detector = spread(build(small_detectors["C3"], 0))
    module = onnx_module(detector, post_processing=False)
    assert module.output_names[:4] == ("cls_logits_3", "box_deltas_3", "iou_logits_3", "cls_logits_4")
    outputs = module(images())
    expected = [tensor for level in detector(images()) for tensor in level]
    assert len(outputs) == len(module.output_names) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))


def test_raw_outputs_of_a_two_stage_detector(small_detectors, build):
    detector = spread(build(small_detectors["C4"], 0))
    proposals, cls_logits, box_deltas = onnx_module(detector, post_processing=False)(images(), torch.tensor(SIZES))
    features, outputs = detector(images())
    rpn = detector.config.rpn
    expected = detector.rpn.proposals(outputs, SIZES, rpn.test_top_n, rpn.test_proposals)
    assert any(len(rois) < proposals.shape[1] for rois in expected)
    for index, rois in enumerate(expected):
        torch.testing.assert_close(proposals[index, : len(rois)], rois, rtol=0, atol=1e-3)
        assert not proposals[index, len(rois) :].any()
        predicted = detector.predict([x[index : index + 1] for x in features], [rois])
        torch.testing.assert_close(cls_logits[index, : len(rois)], predicted.cls_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(box_deltas[index, : len(rois)], predicted.box_deltas, rtol=1e-4, atol=1e-5)
