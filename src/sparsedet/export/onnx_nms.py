"""Non-maximum suppression as an operator of fixed shapes, which `torch.export` can trace, and its ONNX form.

Shapes: G groups (an image and a class, or a level), K boxes of a group.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from sparsedet.export.onnx_file import require_onnx

Operator = Callable[[Tensor, Tensor, float, int], Tensor]
_LOWEST = torch.finfo(torch.float32).min


@cache
def nms_mask_operator() -> Operator:
    """Return the operator ``sparsedet::nms_mask``, which is registered when it is asked for first.

    Its arguments: boxes_xyxy, float32, shape (G, K, 4); scores, float32, shape (G, K), -inf for entries that do not
    count; the IoU above which the box of lower score goes; and the most boxes that stay in a group. It returns
    which boxes stay, bool, shape (G, K).
    """
    operator: Any = torch.library.custom_op("sparsedet::nms_mask", _nms_mask, mutates_args=())
    operator.register_fake(lambda boxes, scores, iou_threshold, max_boxes: torch.empty_like(scores, dtype=torch.bool))
    return torch.ops.sparsedet.nms_mask.default


def nms_translations() -> dict[Operator, Callable[..., Any]]:
    """Return what `sparsedet.export.export_onnx` must be told about the operator.

    Raises:
        MissingExtraError: onnxscript is not installed.
    """
    op = require_onnx("onnxscript").opset18

    def nms_mask(boxes: Any, scores: Any, iou_threshold: float, max_boxes: int) -> Any:
        chosen = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[max_boxes]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[_LOWEST]),
        )
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        # one for each place; there may be none
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(places, start=0, end=1))
        zeros = op.ConstantOfShape(op.Shape(scores))
        return op.Cast(op.ScatterND(zeros, places, ones), to=9)  # bool

    return {nms_mask_operator(): nms_mask}


def _nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group, values in enumerate(scores):
        counted = (values > _LOWEST).nonzero()[:, 0]
        best = nms(boxes[group, counted].double(), values[counted].double(), iou_threshold)[:max_boxes]
        kept[group, counted[best]] = True
    return kept
