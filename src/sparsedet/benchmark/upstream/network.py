"""The ``net:`` list of United-Perception: which entries make up which detector; backbone and neck.

Meaning and defaults of every key: up_semantics §2. The heads are in `retina` and `faster_rcnn`.
"""

from collections.abc import Mapping
from typing import Any

from sparsedet.benchmark.upstream import faster_rcnn, retina
from sparsedet.benchmark.upstream.section import Key, Section, Type, fixed, ignored, part, quote, to, value
from sparsedet.benchmark.upstream.shared import NORMS, Pyramid, read_initializer, read_norm

ENTRY = {"name": ignored("UP's parameters are known under these names"), "prev": value("text", None)}
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PLAIN_WIDTHS = (1, 1, 2, 4, 8)

RESNET: dict[str, Key] = {
    "out_layers": value("a list of whole numbers"),
    "out_strides": value("a list of whole numbers"),
    "frozen_layers": value("a list of whole numbers", []),
    "normalize": part({"type": "freeze_bn"}),
    "initializer": part(None),
    "width": value("a list of whole numbers", [64, 64, 128, 256, 512]),
    "multiplier": value("a number", 1),
    "style": fixed("pytorch", "the stride is on the 3x3 convolution"),
    "deep_stem": fixed(False, "the stem is one 7x7 convolution"),
    "avg_down": fixed(False, "shortcuts are strided convolutions"),
    "down_sample": fixed("pool", "the stem ends with a max-pool"),
    "layer_deform": fixed([0, 0, 0, 0, 0], "there are no deformable convolutions"),
    "drop_path_rate": fixed(0, "there is no drop path"),
    "checkpoint": fixed(False, "activations are kept, since recomputing them updates batch norms twice"),
    "fa": fixed(None, "there is no attention block"),
    "nnie": fixed(False, "the max-pool is 3x3 with padding"),
    "input_channel": fixed(3, "images have three channels"),
}

FPN: dict[str, Key] = {
    "outplanes": to("detector.neck.channels", "a whole number"),
    "start_level": ignored("it only numbers UP's modules; backbone and out_strides give the levels"),
    "num_level": to("detector.neck.num_levels", "a whole number"),
    "out_strides": value("a list of whole numbers"),
    "downsample": value("text"),
    "upsample": fixed("nearest", "maps are upsampled by their nearest pixel"),
    "normalize": part(None),
    "initializer": part(None),
    "align_corners": ignored("nearest upsampling has no corners to align"),
    "use_p5": value("true or false", False),
    "skip": ignored("UP never reads it"),
}

BACKBONE_NORMS = {
    **NORMS,
    "freeze_bn": "batch_norm_fixed_stats",
    "msbench_freeze_bn": "batch_norm_fixed_stats",
}

ROLES = {
    **dict.fromkeys(RESNETS, "backbone"),
    "FPN": "neck",
    **dict.fromkeys(retina.HEADS, "head"),
    **dict.fromkeys(retina.POSTS, "post"),
    "NaiveRPN": "rpn",
    "rpn_post": "rpn post",
    "BboxFC_Pre": "pooling",
    "BboxFC": "box head",
    "bbox_post": "box post",
}
COMPOSITIONS = {
    "retinanet": ("backbone", "neck", "head", "post"),
    "faster_rcnn": ("backbone", "neck", "rpn", "rpn post", "pooling", "box head", "box post"),
}
NAMES = {"backbone": "backbone", "neck": "neck", "head": "roi_head", "rpn": "roi_head", "box head": "bbox_head"}
"""Names that entries with parameters must have, since UP's checkpoints are read by them."""
PREVIOUS = {"neck": "backbone", "head": "neck", "rpn": "neck", "box head": "neck"}
"""Entries that take the number of their input channels from another one."""


def read_network(root: Section, net: Section, has_weights: bool) -> None:
    """Translate the entries of `net`, a mapping by their names.

    Args:
        root: top level of the file, for errors about all of `net`.
        net: the entries, in order.
        has_weights: whether the file names weights for the backbone, so that its initial ones do not matter.

    Raises:
        ConfigError: the entries are not a RetinaNet or Faster R-CNN in UP's order, or a key is wrong or refused.
    """
    types = {name: str(entry.get("type")) for name, entry in net.data.items()}
    entries = {name: Section(net.translation, ("net", name), entry) for name, entry in net.data.items()}
    for name, kind in types.items():
        if kind not in ROLES:
            entries[name].choose(dict.fromkeys(ROLES, Type()), {**ENTRY})  # raises and names the nearest type
    roles = tuple(ROLES[kind] for kind in types.values())
    if roles not in COMPOSITIONS.values():
        orders = " or ".join(" > ".join(_types_of(roles)) for roles in COMPOSITIONS.values())
        raise root.error("net", orders, " > ".join(types.values()) or "nothing", "Correct the list.")
    detector = next(kind for kind, order in COMPOSITIONS.items() if order == roles)
    net.translation.set("detector.type", detector, ("net",))
    net.translation.set("detector.legacy_boxes", True, ("net",))
    by_role = dict(zip(roles, entries.values(), strict=True))
    for role, entry in by_role.items():
        _check_entry(role, entry)
    levels = _read_backbone(by_role["backbone"], has_weights)
    pyramid = _read_neck(by_role["neck"], levels)
    if detector == "retinanet":
        retina.read_detector(by_role["head"], by_role["post"], pyramid, ENTRY)
    else:
        faster_rcnn.read_detector(by_role, pyramid, ENTRY)


def _types_of(roles: tuple[str, ...]) -> list[str]:
    return ["|".join(kind for kind, role in ROLES.items() if role == wanted) for wanted in roles]


def _check_entry(role: str, entry: Section) -> None:
    name = entry.path[-1]
    if NAMES.get(role, name) != name:
        raise entry.error("name", f"'{NAMES[role]}'", quote(name), "UP's checkpoints are read by these names.")
    previous = PREVIOUS.get(role)
    if previous is None:
        entry.no_effect("prev", "its input channels do not come from there")
    elif entry.data.get("prev") != previous:
        raise entry.error("prev", f"'{previous}'", quote(entry.data.get("prev")), "Correct or add it.")
    else:
        entry.no_effect("prev", "the parts follow one another in this order")


def _read_backbone(entry: Section, has_weights: bool) -> list[int]:
    """Translate the backbone and return its levels."""
    types = {name: Type(RESNET, "detector.backbone.type", name) for name in RESNETS}
    chosen = entry.choose(types, ENTRY)
    kwargs, keys = chosen.kwargs, chosen.values
    levels = [layer + 1 for layer in keys["out_layers"]]
    kwargs.send("out_layers", levels, "detector.backbone.levels")
    _check_strides(kwargs, keys["out_strides"], levels)
    kwargs.no_effect("out_strides", "the levels have these strides")
    frozen = keys["frozen_layers"]
    if frozen != list(range(len(frozen))):
        raise kwargs.error(
            "frozen_layers", "layers from 0 on without a gap", quote(frozen), "Freeze the ones before, too."
        )
    kwargs.send("frozen_layers", len(frozen), "detector.backbone.frozen_stages")
    _read_width(kwargs, keys)
    read_norm(keys["normalize"], kwargs, "detector.backbone", BACKBONE_NORMS)
    initializer = keys["initializer"]
    if initializer is None and not has_weights:
        raise kwargs.error("initializer", "{method: msra}", "nothing", "Torch's own draw is not built; name msra.")
    if initializer is not None:
        initializer.read({"method": fixed("msra", "only this draw of the backbone's weights is built")})
    entry.translation.set("detector.backbone.init", "lecun_normal", (*kwargs.path, "initializer"))
    return levels


def _read_width(kwargs: Section, keys: Mapping[str, Any]) -> None:
    width, multiplier = keys["width"], keys["multiplier"]
    native = width[0] * multiplier if width else 0
    if width != [width[0] * factor for factor in PLAIN_WIDTHS if width] or native != int(native):
        raise kwargs.error(
            "width", "whole widths in the proportion 1:1:2:4:8", f"{width} times {multiplier}", "Correct width."
        )
    kwargs.translation.set("detector.backbone.width", int(native), (*kwargs.path, "width"))
    for key in ("width", "multiplier"):
        kwargs.mapped(key, f"detector.backbone.width: {int(native)}")


def _read_neck(entry: Section, levels: list[int]) -> Pyramid:
    """Translate the neck and return what the heads must fit."""
    chosen = entry.choose({"FPN": Type(FPN, "detector.neck.type", "fpn")}, ENTRY)
    kwargs, keys = chosen.kwargs, chosen.values
    num_levels = keys["num_level"]
    if num_levels < len(levels):
        raise kwargs.error("num_level", f"at least the backbone's {len(levels)}", quote(num_levels), "Raise it.")
    neck_levels = list(range(levels[0], levels[0] + num_levels))
    _check_strides(kwargs, keys["out_strides"], neck_levels)
    kwargs.no_effect("out_strides", "the levels have these strides")
    if keys["downsample"] not in ("conv", "pool"):
        raise kwargs.error("downsample", "conv or pool", quote(keys["downsample"]), "Correct it.")
    kwargs.send("downsample", keys["downsample"], "detector.neck.extra")
    if keys["use_p5"] and keys["downsample"] == "conv":
        raise kwargs.error("use_p5", "false", "true", "Refused: the first extra convolution reads the highest lateral.")
    kwargs.no_effect("use_p5", "the extra levels are what they are without it")
    read_norm(keys["normalize"], kwargs, "detector.neck", NORMS)
    read_initializer(keys["initializer"], kwargs, "detector.neck.init_std", xavier=True)
    return Pyramid(num_levels, tuple(2**level for level in neck_levels))


def _check_strides(kwargs: Section, strides: list[int], levels: list[int]) -> None:
    if strides != [2**level for level in levels]:
        expected = f"{[2**level for level in levels]} for {len(levels)} levels"
        raise kwargs.error("out_strides", expected, quote(strides), "Correct it; dilated layers are not built.")
