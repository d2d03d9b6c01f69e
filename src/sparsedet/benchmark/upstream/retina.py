"""United-Perception's RetinaNet heads and what follows them.

Meaning and defaults of every key: up_semantics §2.5, §5, §6, §7.
"""

from collections.abc import Mapping

from sparsedet.benchmark.upstream.section import Chosen, Key, Section, Type, fixed, ignored, part, quote, to, value
from sparsedet.benchmark.upstream.shared import (
    L1_KEYS,
    NORMS,
    Pyramid,
    check_num_level,
    loss_keys,
    matcher_types,
    nms_keys,
    read_anchors,
    read_initializer,
    read_norm,
    supervisor_keys,
)
from sparsedet.detection.models.retina_head import PREDICTOR_STD

HEADS = ("RetinaSubNet", "RetinaHeadWithBN", "RetinaHeadWithBNIOU")
POSTS = ("retina_post", "retina_post_iou")

HEAD: dict[str, Key] = {
    "feat_planes": to("detector.head.channels", "a whole number"),
    "num_classes": value("a whole number"),
    "normalize": part({"type": "solo_bn"}),
    "initializer": part(None),
    "num_conv": to("detector.head.num_convs", "a whole number", 4),
    "init_prior": to("detector.head.prior", "a number", 0.01),
    "num_anchors": value("a whole number"),
    "num_level": value("a whole number", 5),
    "class_activation": fixed("sigmoid", "classes are scored one by one"),
    "share_subnet": fixed(False, "classes and boxes have a tower each"),
    "share_location": fixed(True, "all classes share one box"),
}
POST: dict[str, Key] = {
    "num_classes": value("a whole number"),
    "cfg": part(),
    "prefix": ignored("it names losses in UP's log"),
    "class_first": value("true or false", None),
    "export_iou": ignored("only UP's export reads it"),
}
CFG: dict[str, Key] = {
    "cls_loss": part(),
    "loc_loss": part(),
    "iou_branch_loss": part(None),
    "anchor_generator": part(),
    "roi_supervisor": part(),
    "roi_predictor": part(None),
    "train": ignored("what is predicted while training is not used"),
    "test": part({}),
}
IOU_LOSSES = {"iou": "iou", "linear_iou": "linear_iou", "giou": "giou", "diou": "diou", "ciou": "ciou"}
ONLY_SIGMOID = "the loss takes logits, and its divisor is the number of positives"


def read_detector(head: Section, post: Section, pyramid: Pyramid, entry: Mapping[str, Key]) -> None:
    """Translate head and post-processing of a RetinaNet; `entry` are the keys beside ``type`` and ``kwargs``.

    Raises:
        ConfigError: a key is wrong or refused, or the two do not fit each other or the neck.
    """
    no_norm = fixed(None, "norms that all levels share are not built; RetinaHeadWithBN has one for each level")
    types = {name: Type(HEAD, "detector.head.type", "retina") for name in HEADS}
    types["RetinaSubNet"] = Type({**HEAD, "normalize": no_norm}, "detector.head.type", "retina")
    chosen = head.choose(types, entry)
    kwargs, keys = chosen.kwargs, chosen.values
    check_num_level(kwargs, keys["num_level"], pyramid)
    read_norm(keys["normalize"], kwargs, "detector.head", NORMS)
    read_initializer(keys["initializer"], kwargs, "detector.head.init_std")
    std = head.translation.native.data["detector"]["head"]["init_std"]
    if std != PREDICTOR_STD:
        raise kwargs.error("initializer", f"std {PREDICTOR_STD}", quote(std), "Refused: predictors always start so.")
    kwargs.send("num_classes", keys["num_classes"] - 1, "data.num_classes")
    has_iou = chosen.name == "RetinaHeadWithBNIOU"
    head.translation.set("detector.head.iou_branch", has_iou, (*head.path, "type"))
    _read_post(post, chosen, has_iou, pyramid, entry)


def _read_post(post: Section, head: Chosen, has_iou: bool, pyramid: Pyramid, entry: Mapping[str, Key]) -> None:
    fitting = "retina_post_iou" if has_iou else "retina_post"
    if post.data.get("type") != fitting:
        raise post.error(
            "type", f"'{fitting}' after {head.name}", quote(post.data.get("type")), "Correct one of the two."
        )
    chosen = post.choose({fitting: Type(POST, "detector.post_processing, losses, anchors and assigner")}, entry)
    kwargs, keys = chosen.kwargs, chosen.values
    if keys["num_classes"] != head.values["num_classes"]:
        expected = f"the head's {head.values['num_classes']}"
        raise kwargs.error("num_classes", expected, quote(keys["num_classes"]), "Correct one of the two.")
    kwargs.mapped("num_classes", f"data.num_classes: {keys['num_classes'] - 1}")
    class_first = has_iou if keys["class_first"] is None else keys["class_first"]
    kwargs.send("class_first", class_first, "detector.head.class_major")
    cfg = keys["cfg"].read(CFG)
    read_anchors(cfg["anchor_generator"], "detector.anchors", head.values["num_anchors"], head.kwargs, pyramid)
    _read_supervisor(cfg["roi_supervisor"], has_iou)
    _read_cls_loss(cfg["cls_loss"], keys["num_classes"])
    _read_box_losses(cfg["loc_loss"], has_iou)
    _read_iou_loss(cfg["iou_branch_loss"], keys["cfg"], has_iou)
    predictor = cfg["test"].read({"roi_predictor": part(None)})["roi_predictor"]
    if predictor is not None and cfg["roi_predictor"] is not None:
        keys["cfg"].no_effect("roi_predictor", "test.roi_predictor takes its place")
    _read_predictor(predictor or cfg["roi_predictor"], keys["cfg"])


def _read_supervisor(section: Section, has_iou: bool) -> None:
    atss = {
        "top_n": to("detector.assigner.top_n", "a whole number", 9),
        "use_iou": fixed(has_iou, "heads with an IoU branch learn IoUs, others do not"),
        "use_centerness": fixed(False, "no head learns centerness"),
        "gt_encode": fixed(True, "boxes are learned as offsets to anchors"),
        "return_gts": ignored("only other heads of UP ask for it"),
    }
    types = {
        "retina": Type(supervisor_keys(), "detector.assigner"),
        "atss": Type(atss, "detector.assigner.type", "atss"),
    }
    chosen = section.choose(types)
    at = "detector.assigner"
    if chosen.name == "retina":
        if has_iou:
            raise section.error("type", "'atss' for a head with an IoU branch", "'retina'", "Use atss.")
        chosen.values["matcher"].choose(matcher_types(at))
        chosen.values["sampler"].choose({"keep_all": Type(reason="all anchors are counted")})
    if section.translation.up_compat:
        fault = "up_compat" if chosen.name == "retina" else "ignore_overrides_positives"
        section.translation.set(f"{at}.{fault}", True, ("up_compat",))


def _read_cls_loss(section: Section, num_classes: int) -> None:
    common: dict[str, Key] = {
        "gamma": to("detector.cls_loss.gamma", "a number"),
        "init_prior": ignored("the head's init_prior is what counts"),
        "ignore_index": fixed(-1, "anchors that do not count have this target"),
        "dynamic_normalizer": fixed(False, ONLY_SIGMOID),
    }
    focal: dict[str, Key] = {
        **common,
        "num_classes": fixed(num_classes, "the head has so many"),
        "alpha": to("detector.cls_loss.alpha", "a number", 0.25),
        "gamma": to("detector.cls_loss.gamma", "a number", 2.0),
    }
    quality = {**common, "use_sigmoid": fixed(True, ONLY_SIGMOID)}
    weight = "detector.cls_loss.weight"
    section.choose(
        {
            "sigmoid_focal_loss": Type(
                loss_keys("sigmoid_focal_loss", weight, focal), "detector.cls_loss.type", "focal"
            ),
            "quality_focal_loss": Type(
                loss_keys("quality_focal_loss", weight, quality), "detector.cls_loss.type", "quality_focal"
            ),
        }
    )


def _read_box_losses(section: Section, has_iou: bool) -> None:
    """Translate ``loc_loss``: one loss, or several of ``compose_loc_loss``."""
    compose: dict[str, Key] = {
        "name": fixed("compose_loc_loss", "UP decides by this name what a loss is given"),
        "loss_cfg": value("a list of mappings"),
    }
    parts = [section]
    is_composed = section.data.get("type") == "compose_loc_loss"
    if is_composed:
        types = {"compose_loc_loss": Type(compose, "detector.box_losses, one for each of loss_cfg")}
        parts = section.choose(types).kwargs.items("loss_cfg")
    section.translation.set(
        "detector.box_losses", [_box_loss(loss, has_iou, is_composed) for loss in parts], section.path
    )


def _box_loss(section: Section, has_iou: bool, is_composed: bool) -> dict[str, object]:
    """Return the native form of one box loss."""
    iou = {"loss_type": value("text", "iou")}
    at = "detector.box_losses"
    types = {"iou_loss": _loss_type("iou_loss", at, iou), "l1_loss": _loss_type("l1_loss", at, L1_KEYS)}
    if not is_composed:
        types["compose_loc_loss"] = Type()  # for the list of known names; it was read before
    chosen = section.choose(types)
    weight = chosen.values["loss_weight"]
    chosen.kwargs.mapped("loss_weight", f"{at} … weight: {weight}")
    if chosen.name == "l1_loss":
        if has_iou and not is_composed:
            raise section.error(
                "type",
                "iou_loss, or l1_loss inside compose_loc_loss",
                "'l1_loss'",
                "Refused: its divisor is not built.",
            )
        return {"type": "l1", "weight": weight, "mean": is_composed}
    kind = chosen.values["loss_type"]
    if kind not in IOU_LOSSES:
        raise chosen.kwargs.error("loss_type", f"one of {sorted(IOU_LOSSES)}", quote(kind), "Others are not built.")
    chosen.kwargs.mapped("loss_type", f"{at} … type: {IOU_LOSSES[kind]}")
    return {"type": IOU_LOSSES[kind], "weight": weight, "by_quality": has_iou}


def _loss_type(name: str, at: str, extra: Mapping[str, Key]) -> Type:
    return Type({**loss_keys(name, "", extra), "loss_weight": value("a number", 1.0)}, at)


def _read_iou_loss(section: Section | None, cfg: Section, has_iou: bool) -> None:
    if not has_iou:
        if section is not None:
            cfg.no_effect("iou_branch_loss", "the head has no IoU branch")
        return
    if section is None:
        raise cfg.error("iou_branch_loss", "a mapping", "nothing", "Add {type: sigmoid_cross_entropy}.")
    extra = {
        "ignore_index": fixed(-1, "every positive anchor counts"),
        "init_prior": ignored("the branch starts without a bias"),
    }
    keys = loss_keys("sigmoid_cross_entropy", "detector.iou_loss_weight", extra)
    section.choose({"sigmoid_cross_entropy": Type(keys, "the loss of detector.head.iou_branch")})


def _read_predictor(section: Section | None, cfg: Section) -> None:
    at = "detector.post_processing"
    if section is None:
        raise cfg.error("roi_predictor", "a mapping", "nothing", "Add the key.")
    merger = {"top_n": to(f"{at}.max_detections", "a whole number"), "nms": part()}
    keys: dict[str, Key] = {
        "pre_nms_score_thresh": to(f"{at}.score_threshold", "a number"),
        "pre_nms_top_n": value("a whole number"),
        "post_nms_top_n": value("a whole number"),
        "roi_min_size": fixed(0, "boxes of any size are kept"),
        "merger": part(),
        "nms": fixed(None, "levels are joined before their boxes are compared"),
        "clip_box": fixed(True, "boxes are clipped to the image"),
        "share_location": fixed(True, "all classes share one box"),
    }
    chosen = section.choose({"base": Type(keys, at)})
    top_n = min(chosen.values["pre_nms_top_n"], chosen.values["post_nms_top_n"])
    for key in ("pre_nms_top_n", "post_nms_top_n"):
        chosen.kwargs.send(key, top_n, f"{at}.top_n")
    merged = chosen.values["merger"].choose({"retina": Type(merger, at)})
    merged.values["nms"].read(nms_keys(f"{at}.nms_iou"))
    if section.translation.up_compat:
        section.translation.set(f"{at}.up_compat", True, ("up_compat",))
