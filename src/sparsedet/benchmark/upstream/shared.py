"""What several parts of United-Perception's networks have in common: norms, initialisers, anchors, matchers, losses."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsedet.benchmark.upstream.section import Key, Section, Type, fixed, ignored, part, quote, to, value

NORMS = {"solo_bn": "batch_norm", "sync_bn": "sync_batch_norm"}
DRAW = "only this draw of the initial weights is built"


@dataclass(frozen=True)
class Pyramid:
    """What a head must fit.

    Attributes:
        num_levels: levels of the neck.
        strides: stride of each in pixels.
    """

    num_levels: int
    strides: tuple[int, ...]


L1_KEYS: dict[str, Key] = {
    "scale_type": fixed("linear", "offsets are compared as they are"),
    "code_weights": fixed(None, "all four offsets weigh the same"),
}


def check_num_level(kwargs: Section, num_level: int, pyramid: Pyramid) -> None:
    """Check that a head has a level for each of the neck's."""
    if num_level != pyramid.num_levels:
        raise kwargs.error("num_level", f"the neck's {pyramid.num_levels}", quote(num_level), "Correct it.")
    kwargs.no_effect("num_level", "the head takes every level of the neck")


def read_norm(section: Section | None, kwargs: Section, at: str, norms: Mapping[str, str]) -> None:
    """Translate ``normalize`` into ``norm`` and ``sync_group_size`` of the part `at`.

    Args:
        section: the mapping, or None for no norm at all.
        kwargs: the mapping it stands in.
        at: native key path of the part.
        norms: native name of each type that the part can have.
    """
    if section is None:
        kwargs.send("normalize", "none", f"{at}.norm")
        return
    group = {"group_size": to(f"{at}.sync_group_size", "a whole number", None)}
    types = {name: Type(group if name == "sync_bn" else {}, f"{at}.norm", native) for name, native in norms.items()}
    section.choose(types)


def read_initializer(section: Section | None, kwargs: Section, target: str, xavier: bool = False) -> None:
    """Translate ``initializer`` into a standard deviation; null stands for Xavier's, and UP's default is 0.01."""
    path = (*kwargs.path, "initializer")
    if section is None:
        kwargs.translation.set(target, 0.01, path)
        return
    keys = section.read({"method": value("text"), "std": value("a number", None)})
    methods = ["normal", *(["xavier"] if xavier else [])]
    if keys["method"] not in methods:
        raise section.error("method", f"one of {methods}", quote(keys["method"]), f"Refused: {DRAW}.")
    std = (0.01 if keys["std"] is None else keys["std"]) if keys["method"] == "normal" else None
    section.send("method", std, target)
    section.mapped("std", f"{target}: {std}") if std is not None else section.no_effect("std", "Xavier's draw has none")


def read_anchors(section: Section, at: str, num_anchors: int, head: Section, pyramid: Pyramid) -> None:
    """Translate ``anchor_generator`` and check that the head has as many predictions per cell."""
    keys = {
        "anchor_ratios": to(f"{at}.ratios", "a list of numbers"),
        "anchor_scales": to(f"{at}.scales", "a list of numbers"),
        "anchor_strides": value("a list of whole numbers", None),
    }
    chosen = section.choose({"hand_craft": Type(keys, at)})
    kwargs, found = chosen.kwargs, chosen.values
    if found["anchor_strides"] not in (None, list(pyramid.strides)):
        raise kwargs.error("anchor_strides", str(list(pyramid.strides)), quote(found["anchor_strides"]), "Correct it.")
    kwargs.no_effect("anchor_strides", "they are the neck's strides")
    product = len(found["anchor_ratios"]) * len(found["anchor_scales"])
    if num_anchors != product:
        shapes = f"{len(found['anchor_ratios'])} ratios times {len(found['anchor_scales'])} scales"
        raise head.error("num_anchors", f"{product}, {shapes}", quote(num_anchors), "Correct one of them.")
    head.no_effect("num_anchors", "ratios and scales of the anchors give it")


def matcher_types(at: str) -> dict[str, Type]:
    """Return the types of ``matcher`` for the native assigner `at`."""
    keys = {
        "positive_iou_thresh": to(f"{at}.positive_iou", "a number"),
        "negative_iou_thresh": to(f"{at}.negative_iou", "a number"),
        "ignore_iou_thresh": to(f"{at}.ignore_iou", "a number"),
        "allow_low_quality_match": to(f"{at}.low_quality", "true or false"),
        "low_quality_thresh": to(f"{at}.low_quality_iou", "a number", 0),
    }
    return {"max_iou": Type(keys, f"{at}.type", "max_iou")}


def sampler_types(at: str) -> dict[str, Type]:
    """Return the types of ``sampler`` that draw a batch of candidates."""
    keys = {
        "batch_size": to(f"{at}.batch_size", "a whole number"),
        "positive_percent": to(f"{at}.positive_share", "a number"),
    }
    return {"naive": Type(keys, at)}


def supervisor_keys() -> dict[str, Key]:
    """Return the keys that the supervisors of anchors share."""
    return {
        "allowed_border": fixed(-1, "anchors that cross the border of the image are kept"),
        "matcher": part(),
        "sampler": part(),
        "bbox_encode": fixed(True, "boxes are learned as offsets to anchors"),
        "return_pos_inds": ignored("only other heads of UP ask for it"),
        "filter_outside_before_match": ignored("all anchors are kept, see allowed_border"),
    }


def loss_keys(name: str, weight: str, extra: Mapping[str, Key] | None = None) -> dict[str, Key]:
    """Return the keys of the loss `name`; `weight` is the native key path of its factor."""
    return {
        "name": fixed(name, "UP decides by this name what a loss is given"),
        "reduction": fixed("mean", "losses are divided by the number of samples"),
        "loss_weight": to(weight, "a number", 1.0),
        **(extra or {}),
    }


def nms_keys(target: str) -> dict[str, Key]:
    """Return the keys of ``nms``."""
    return {
        "type": fixed("naive", "boxes are dropped, not scored down"),
        "nms_iou_thresh": to(target, "a number"),
    }
