"""United-Perception's Faster R-CNN: region proposals, pooling, box head.

Meaning and defaults of every key: up_semantics §2.5, §5.1, §5.3, §6, §7.
"""

from collections.abc import Mapping

from sparsedet.benchmark.upstream.section import Key, Section, Type, fixed, ignored, part, quote, to, value
from sparsedet.benchmark.upstream.shared import (
    DRAW,
    L1_KEYS,
    Pyramid,
    check_num_level,
    loss_keys,
    matcher_types,
    nms_keys,
    read_anchors,
    read_initializer,
    sampler_types,
    supervisor_keys,
)

TWO_CLASSES = "proposals are objects or background"
OWN_BOXES = "every class has its own box"
RPN_HEAD: dict[str, Key] = {
    "feat_planes": to("detector.rpn.channels", "a whole number"),
    "num_classes": fixed(2, TWO_CLASSES),
    "num_anchors": value("a whole number"),
    "class_activation": fixed("sigmoid", TWO_CLASSES),
    "num_level": value("a whole number", 5),
    "Normalize": fixed(None, "UP never builds a norm there"),
    "initializer": part(None),
}
RPN_CFG: dict[str, Key] = {
    "cls_loss": part(),
    "loc_loss": part(),
    "anchor_generator": part(),
    "roi_supervisor": part(),
    "train": part(),
    "test": part(),
}


def read_detector(parts: Mapping[str, Section], pyramid: Pyramid, entry: Mapping[str, Key]) -> None:
    """Translate all but backbone and neck of a Faster R-CNN.

    Args:
        parts: the entries by their role.
        pyramid: what the neck gives.
        entry: keys beside ``type`` and ``kwargs``.

    Raises:
        ConfigError: a key is wrong or refused, or the parts do not fit each other or the neck.
    """
    _read_rpn(parts["rpn"], parts["rpn post"], pyramid, entry)
    pool_size, stds = _read_pooling(parts["pooling"], pyramid, entry)
    _read_box_head(parts["box head"], pool_size, entry)
    _read_box_post(parts["box post"], stds, entry)
    if parts["rpn"].translation.up_compat:
        for key in ("rpn.assigner.up_compat", "roi_head.up_compat"):
            parts["rpn"].translation.set(f"detector.{key}", True, ("up_compat",))


def _read_rpn(head: Section, post: Section, pyramid: Pyramid, entry: Mapping[str, Key]) -> None:
    chosen = head.choose({"NaiveRPN": Type(RPN_HEAD, "detector.rpn")}, entry)
    kwargs, keys = chosen.kwargs, chosen.values
    check_num_level(kwargs, keys["num_level"], pyramid)
    read_initializer(keys["initializer"], kwargs, "detector.rpn.init_std")
    post_keys = {
        "num_classes": fixed(2, TWO_CLASSES),
        "cfg": part(),
        "prefix": ignored("it names losses in UP's log"),
    }
    cfg = post.choose({"rpn_post": Type(post_keys, "detector.rpn")}, entry).values["cfg"].read(RPN_CFG)
    at = "detector.rpn"
    read_anchors(cfg["anchor_generator"], f"{at}.anchors", keys["num_anchors"], kwargs, pyramid)
    supervisor = cfg["roi_supervisor"].choose({"rpn": Type(supervisor_keys(), f"{at}.assigner, {at}.sampler")})
    supervisor.values["matcher"].choose(matcher_types(f"{at}.assigner"))
    supervisor.values["sampler"].choose(sampler_types(f"{at}.sampler"))
    cls_loss = loss_keys("sigmoid_cross_entropy", f"{at}.cls_weight", {
        "ignore_index": fixed(-1, "anchors that are not sampled do not count"),
        "init_prior": ignored("the head starts without a bias"),
    })  # fmt: skip
    cfg["cls_loss"].choose({"sigmoid_cross_entropy": Type(cls_loss, at)})
    cfg["loc_loss"].choose({"l1_loss": Type(loss_keys("l1_loss", f"{at}.box_weight", L1_KEYS), at)})
    overlaps = {phase: _read_proposals(cfg[phase], phase) for phase in ("train", "test")}
    if len(set(overlaps.values())) > 1:
        raise cfg["test"].error("roi_predictor", f"the nms_iou_thresh of train, {overlaps['train']}",
                                quote(overlaps["test"]), "Refused: one threshold serves both.")  # fmt: skip


def _read_proposals(phase: Section, name: str) -> float:
    """Translate the proposals of one phase and return the overlap allowed among them."""
    at = "detector.rpn"
    merger = {
        "top_n": value("a whole number"),
        "topk_in_a_batch": fixed(False, "every image has its own proposals"),
    }
    keys: dict[str, Key] = {
        "pre_nms_score_thresh": fixed(0, "proposals of any score are kept"),
        "pre_nms_top_n": to(f"{at}.{name}_top_n", "a whole number"),
        "post_nms_top_n": to(f"{at}.{name}_proposals", "a whole number"),
        "roi_min_size": fixed(0, "boxes of any size are kept"),
        "nms": part(),
        "merger": part(),
        "clip_box": fixed(True, "boxes are clipped to the image"),
        "share_location": fixed(True, "there is one class"),
    }
    predictor = phase.read({"roi_predictor": part()})["roi_predictor"].choose({"base": Type(keys, at)})
    merged = predictor.values["merger"].choose({"rpn": Type(merger, at)})
    num_level, num_image = predictor.values["post_nms_top_n"], merged.values["top_n"]
    if num_level != num_image:
        reason = "Refused: one number serves levels and images."
        raise merged.kwargs.error("top_n", f"post_nms_top_n, {num_level}", quote(num_image), reason)
    merged.kwargs.mapped("top_n", f"{at}.{name}_proposals: {num_image}")
    return float(predictor.values["nms"].read(nms_keys(f"{at}.nms_iou"))["nms_iou_thresh"])


def _read_pooling(entry_section: Section, pyramid: Pyramid, entry: Mapping[str, Key]) -> tuple[int, list[float]]:
    """Translate ``BboxFC_Pre`` and return pool size and box units, which the entries behind it must repeat."""
    at = "detector.roi_head"
    keys = {"with_drp": ignored("it only shares UP's pooling modules in another way"), "cfg": part()}
    chosen = entry_section.choose({"BboxFC_Pre": Type(keys, at)}, entry)
    cfg = chosen.values["cfg"].read({"bbox_supervisor": part(), "fpn": part(), "roipooling": part()})
    fpn = cfg["fpn"].read(
        {
            "fpn_levels": value("a list of whole numbers"),
            "base_scale": to(f"{at}.base_scale", "a number"),
        }
    )
    levels = fpn["fpn_levels"]
    if levels != list(range(len(levels))) or not 0 < len(levels) <= pyramid.num_levels:
        known = f"indices from 0 on, at most {pyramid.num_levels} of them"
        raise cfg["fpn"].error("fpn_levels", known, quote(levels), "Correct the list.")
    cfg["fpn"].send("fpn_levels", len(levels), f"{at}.num_levels")
    pooling = cfg["roipooling"].read(
        {
            "method": fixed("roialignpool", "regions are pooled by RoIAlign"),
            "pool_size": to(f"{at}.pool_size", "a whole number"),
            "sampling_ratio": to(f"{at}.sampling_ratio", "a whole number"),
        }
    )
    supervisor_parts = {"bbox_normalize": part(), "matcher": part(), "sampler": part()}
    supervisor = cfg["bbox_supervisor"].choose({"faster": Type(supervisor_parts, f"{at}.assigner, {at}.sampler")})
    supervisor.values["matcher"].choose(matcher_types(f"{at}.assigner"))
    supervisor.values["sampler"].choose(sampler_types(f"{at}.sampler"))
    scales = supervisor.values["bbox_normalize"].read(
        {"means": fixed([0, 0, 0, 0], "offsets are not shifted"), "stds": to(f"{at}.box_stds", "a list of numbers")}
    )
    return pooling["pool_size"], scales["stds"]


def _read_box_head(section: Section, pool_size: int, entry: Mapping[str, Key]) -> None:
    keys = {
        "feat_planes": to("detector.roi_head.channels", "a whole number"),
        "num_classes": value("a whole number"),
        "initializer": part(),
        "cfg": part(),
    }
    chosen = section.choose({"BboxFC": Type(keys, "detector.roi_head")}, entry)
    chosen.kwargs.send("num_classes", chosen.values["num_classes"] - 1, "data.num_classes")
    chosen.values["initializer"].read({"method": fixed("msra", DRAW)})
    cfg = chosen.values["cfg"].read(
        {
            "class_activation": fixed("softmax", "classes and background share one softmax"),
            "roipooling": part(),
            "share_location": fixed(False, OWN_BOXES),
            "init_prior": ignored("only UP's sigmoid reads it"),
        }
    )
    cfg["roipooling"].read(
        {
            "pool_size": fixed(pool_size, "regions are pooled to this size before"),
            "method": ignored("the pooling before this entry is what counts"),
            "sampling_ratio": ignored("the pooling before this entry is what counts"),
        }
    )


def _read_box_post(section: Section, stds: list[float], entry: Mapping[str, Key]) -> None:
    at, done = "detector.roi_head", "detector.post_processing"
    cfg_keys: dict[str, Key] = {
        "cls_loss": part(),
        "loc_loss": part(),
        "share_location": value("true or false"),  # UP takes it for true where it is absent
        "bbox_normalize": ignored("the loss that reads it is not built"),
        "bbox_predictor": part(),
        "ohem": fixed(None, "hard examples are not mined"),
        "grid": fixed(None, "there is no grid head"),
    }
    chosen = section.choose({"bbox_post": Type({"cfg": part()}, f"{at}, {done}")}, entry)
    cfg = chosen.values["cfg"].read(cfg_keys)
    if cfg["share_location"]:
        raise chosen.values["cfg"].error("share_location", "false", "true", f"Refused: {OWN_BOXES}.")
    chosen.values["cfg"].no_effect("share_location", "false is what is done")
    cls_loss = loss_keys("softmax_cross_entropy", f"{at}.cls_weight", {
        "class_dim": fixed(-1, "the last dimension is that of the classes"),
        "ignore_index": fixed(-1, "every sampled region counts"),
    })  # fmt: skip
    cfg["cls_loss"].choose({"softmax_cross_entropy": Type(cls_loss, at)})
    cfg["loc_loss"].choose({"l1_loss": Type(loss_keys("l1_loss", f"{at}.box_weight", L1_KEYS), at)})
    predictor = cfg["bbox_predictor"].choose({"faster": Type(_predictor_keys(done), done)})
    predictor.values["nms"].read(nms_keys(f"{done}.nms_iou"))
    predictor.values["bbox_normalize"].read(
        {
            "means": fixed([0, 0, 0, 0], "offsets are not shifted"),
            "stds": fixed(stds, "training and prediction use the same units"),
        }
    )


def _predictor_keys(at: str) -> dict[str, Key]:
    return {
        "bbox_normalize": part(),
        "bbox_score_thresh": to(f"{at}.score_threshold", "a number"),
        "top_n": to(f"{at}.max_detections", "a whole number"),
        "share_location": fixed(False, OWN_BOXES),
        "nms": part(),
        "bbox_vote": fixed(None, "boxes do not vote"),
    }
