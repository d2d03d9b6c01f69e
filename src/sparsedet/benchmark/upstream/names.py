"""What United-Perception calls the parts of our detectors."""

import re

from torch import nn

_RULES = (  # pattern of our key -> United-Perception's (up_semantics §2.1)
    (r"backbone\.conv1\.", "backbone.layer0.0."),
    (r"backbone\.bn1\.", "backbone.layer0.1."),
    (r"neck\.lateral\.(\d+)\.", r"neck.c\1_lateral."),
    (r"neck\.output\.(\d+)\.", r"neck.p\1_conv."),
    (r"neck\.extra\.(\d+)\.", r"neck.p\1_conv."),
    (r"head\.(cls|box)_tower\.norms\.(\d+)\.(\d+)\.", r"roi_head.\1_subnet.\3.\2.1."),
    (r"head\.(cls|box)_pred\.", r"roi_head.\1_subnet_pred."),
    (r"head\.iou_pred\.", "roi_head.iou_pred."),
    (r"rpn\.conv\.", "roi_head.conv3x3."),
    (r"rpn\.cls_pred\.", "roi_head.conv_cls."),
    (r"rpn\.box_pred\.", "roi_head.conv_loc."),
    (r"box_head\.fc1\.", "bbox_head.fc6."),
    (r"box_head\.fc2\.", "bbox_head.fc7."),
    (r"box_head\.cls_pred\.", "bbox_head.fc_rcnn_cls."),
    (r"box_head\.box_pred\.", "bbox_head.fc_rcnn_loc."),
)
_SHARED_CONV = re.compile(r"head\.(cls|box)_tower\.convs\.(\d+)\.(.*)")


def upstream_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return United-Perception's names of each entry of the state dict of one of our detectors.

    There are several where it stores a convolution that all levels share once for each level. What it does not
    have (other backbones) keeps our name.
    """
    keys = list(model.state_dict())
    neck_has_norms = any(re.match(r"neck\.lateral\.\d+\.norm\.", key) for key in keys)
    levels = sorted({int(key.split(".")[4]) for key in keys if key.startswith("head.cls_tower.norms.")})
    return {key: _names(key, neck_has_norms, levels) for key in keys}


def _names(key: str, neck_has_norms: bool, levels: list[int]) -> tuple[str, ...]:
    if found := _SHARED_CONV.fullmatch(key):
        branch, index, rest = found.groups()
        if not levels:  # without norms it is one sequence of convolutions and ReLUs
            return (f"roi_head.{branch}_subnet.{2 * int(index)}.{rest}",)
        return tuple(f"roi_head.{branch}_subnet.{level}.{index}.0.{rest}" for level in levels)
    for pattern, replacement in _RULES:
        if re.match(pattern, key):
            name = re.sub(f"^{pattern}", replacement, key)
            break
    else:
        return (key,)
    if name.startswith("neck."):
        name = name.replace(".norm.", ".bn.") if neck_has_norms else name.replace("_lateral.conv.", "_lateral.")
        if not neck_has_norms:
            name = name.replace("_conv.conv.", "_conv.")
    return (name,)
