"""The operator for non-maximum suppression, in PyTorch and in onnxruntime."""

import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from sparsedet.export.onnx_export import export_onnx
from sparsedet.export.onnx_nms import nms_mask_operator, nms_translations
from sparsedet.export.onnx_run import OnnxRunner

pytest.importorskip("onnx")
ABSENT = float("-inf")


def boxes_and_scores(groups=3, number=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, number, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(groups, number, 2, generator=generator) * 30], dim=2)
    scores = torch.randn(groups, number, generator=generator)  # negative ones count too
    scores[1, ::3] = ABSENT
    scores[2] = ABSENT
    return boxes, scores


def kept_by_torchvision(boxes, scores, iou, number):
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(len(scores)):
        rows = (scores[group] > ABSENT).nonzero()[:, 0]
        best = batched_nms(boxes[group, rows], scores[group, rows], torch.zeros(len(rows)), iou)
        kept[group, rows[best[:number]]] = True
    return kept


@pytest.mark.parametrize(("iou", "number"), [(0.3, 100), (0.3, 4), (0.9, 100)])
def test_it_keeps_what_torchvision_keeps(iou, number):
    boxes, scores = boxes_and_scores()
    kept = nms_mask_operator()(boxes, scores, iou, number)
    assert torch.equal(kept, kept_by_torchvision(boxes, scores, iou, number))
    assert 0 < kept[0].sum() <= number
    assert not kept[2].any()


class Kept(nn.Module):
    def forward(self, boxes, scores):
        return nms_mask_operator()(boxes, scores, 0.3, 12)


def test_it_does_the_same_in_onnxruntime(tmp_path):
    path = tmp_path / "nms.onnx"
    dims = [{0: "groups", 1: "boxes"}] * 2
    export_onnx(Kept(), boxes_and_scores(), path, dynamic_dims=dims, translations=nms_translations())
    run = OnnxRunner(path)
    for groups, number in ((3, 40), (5, 80), (3, 1)):
        boxes, scores = boxes_and_scores(groups, number, seed=number)
        (kept,) = run((boxes, scores)).values()
        assert kept.dtype == torch.bool
        assert torch.equal(kept, kept_by_torchvision(boxes, scores, 0.3, 12))
    boxes, scores = boxes_and_scores()
    (kept,) = run((boxes, torch.full_like(scores, ABSENT))).values()
    assert not kept.any()
