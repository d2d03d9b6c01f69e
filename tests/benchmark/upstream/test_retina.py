import pytest

PLAIN, BN, IOU = (f"{name}.yaml" for name in ("retina_plain", "retina_bn", "retina_iou"))
HEAD, POST = "net.roi_head", "net.post_process"
CFG = f"{POST}.kwargs.cfg"
OTHER_PREDICTOR = (
    "{roi_predictor: {type: base, kwargs: {pre_nms_score_thresh: 0.2, pre_nms_top_n: 9, post_nms_top_n: 9, "
    "roi_min_size: 0, merger: {type: retina, kwargs: {top_n: 3, nms: {type: naive, nms_iou_thresh: 0.3}}}}}}"
)
COMPOSED = "{type: compose_loc_loss, kwargs: {loss_cfg: [{type: iou_loss}, {type: l1_loss}]}}"


@pytest.mark.parametrize(
    ("name", "override", "place", "expected"),
    [
        (PLAIN, f"{HEAD}.type=RetinaHeadWithBN", "detector.head.norm", "batch_norm"),
        (PLAIN, f"{HEAD}.kwargs.num_conv=3", "detector.head.num_convs", 3),
        (BN, f"{HEAD}.kwargs.normalize=", "detector.head.norm", "batch_norm"),
        (PLAIN, f"{POST}.kwargs.class_first=true", "detector.head.class_major", True),
        (IOU, f"{POST}.kwargs.class_first=false", "detector.head.class_major", False),
        (PLAIN, f"{CFG}.loc_loss={{type: iou_loss}}", "detector.box_losses",
         [{"type": "iou", "weight": 1.0, "by_quality": False}]),
        (IOU, f"{CFG}.loc_loss={{type: iou_loss, kwargs: {{loss_type: linear_iou}}}}", "detector.box_losses",
         [{"type": "linear_iou", "weight": 1.0, "by_quality": True}]),
        (BN, f"{CFG}.loc_loss={COMPOSED}", "detector.box_losses",
         [{"type": "iou", "weight": 1.0, "by_quality": False}, {"type": "l1", "weight": 1.0, "mean": True}]),
        (BN, f"{CFG}.cls_loss={{type: sigmoid_focal_loss, kwargs: {{num_classes: 4}}}}", "detector.cls_loss",
         {"type": "focal", "alpha": 0.25, "gamma": 2.0, "weight": 1.0}),
        (PLAIN, f"{CFG}.roi_supervisor.kwargs.matcher.kwargs.low_quality_thresh=0.1",
         "detector.assigner.low_quality_iou", 0.1),
        (PLAIN, f"{CFG}.roi_predictor.kwargs.post_nms_top_n=600", "detector.post_processing.top_n", 500),
        (PLAIN, f"{CFG}.test={OTHER_PREDICTOR}", "detector.post_processing",
         {"score_threshold": 0.2, "top_n": 9, "max_detections": 3, "nms_iou": 0.3}),
    ],
)  # fmt: skip
def test_what_keys_become(name, override, place, expected, native_value):
    assert native_value(name, override, place) == expected


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (PLAIN, f"{HEAD}.kwargs.num_anchors=", f"{HEAD}.kwargs.num_anchors: expected a whole number, got null."),
        (PLAIN, f"{HEAD}.kwargs={{feat_planes: 8, num_classes: 6, num_level: 4}}", f"{HEAD}.kwargs.num_anchors: expec"),
        (PLAIN, f"{HEAD}.kwargs={{feat_planes: 8, num_classes: 6, num_anchor: 6}}", "Did you mean 'num_anchors'? Corr"),
        (PLAIN, f"{HEAD}.kwargs.num_anchors=9", f"{HEAD}.kwargs.num_anchors: expected 6, 3 ratios times 2 scales, got"),
        (PLAIN, f"{HEAD}.kwargs.num_level=5", f"{HEAD}.kwargs.num_level: expected the neck's 4, got 5."),
        (PLAIN, f"{HEAD}.kwargs.initializer={{method: normal, std: 0.02}}", "initializer: expected std 0.01, got 0.02"),
        (PLAIN, f"{HEAD}.kwargs.class_activation=softmax", "class_activation: expected sigmoid, got 'softmax'. Refuse"),
        (PLAIN, f"{HEAD}.kwargs.normalize={{type: solo_bn}}", "normalize: expected null, got {\"type\": "),
        (PLAIN, f"{HEAD}.kwargs.share_subnet=true", "share_subnet: expected false, got true. Refused: "),
        (PLAIN, f"{POST}.kwargs.num_classes=7", f"{POST}.kwargs.num_classes: expected the head's 6, got 7."),
        (PLAIN, f"{CFG}.cls_loss.kwargs.num_classes=7", "cls_loss.kwargs.num_classes: expected 6, got 7. Refused: "),
        (PLAIN, f"{CFG}.cls_loss.kwargs.reduction=sum", "cls_loss.kwargs.reduction: expected mean, got 'sum'. Refused"),
        (PLAIN, f"{CFG}.cls_loss.kwargs.name=mine", "cls_loss.kwargs.name: expected sigmoid_focal_loss, got 'mine'. R"),
        (PLAIN, f"{CFG}.cls_loss={{type: ghm}}", "cls_loss.type: expected one of ['quality_focal_loss', 'sigmoid_foca"),
        (PLAIN, f"{CFG}.loc_loss={{type: smooth_l1_loss}}", "loc_loss.type: expected one of ['compose_loc_loss', 'iou"),
        (BN, f"{CFG}.loc_loss.kwargs.loss_type=eiou", "loss_type: expected one of ['ciou', 'diou', 'giou', 'iou', 'li"),
        (IOU, f"{CFG}.loc_loss={{type: l1_loss}}", "loc_loss.type: expected iou_loss, or l1_loss inside compose_loc_l"),
        (IOU, f"{CFG}.iou_branch_loss=", "iou_branch_loss: expected a mapping, got nothing."),
        (IOU, f"{CFG}.roi_supervisor.kwargs.use_iou=false", "use_iou: expected true, got false. Refused: "),
        (BN, f"{CFG}.roi_supervisor.kwargs.use_iou=true", "use_iou: expected false, got true. Refused: "),
        (PLAIN, f"{CFG}.roi_supervisor.kwargs.allowed_border=0", "allowed_border: expected -1, got 0. Refused: "),
        (PLAIN, f"{CFG}.roi_supervisor.kwargs.sampler={{type: naive}}", "sampler.type: expected one of ['keep_all'], "),
        (PLAIN, f"{CFG}.anchor_generator.kwargs.anchor_strides=[4, 8, 16, 32]", "anchor_strides: expected [8, 16, 32,"),
        (PLAIN, f"{CFG}.roi_predictor.kwargs.roi_min_size=4", "roi_min_size: expected 0, got 4. Refused: "),
        (PLAIN, f"{CFG}.roi_predictor.kwargs.merger.kwargs.nms.type=softer", "nms.type: expected naive, got 'softer'."),
        (PLAIN, f"{CFG}.roi_predictor=", "roi_predictor: expected a mapping, got nothing. Add the key."),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(name, override, message, refusal):
    assert message in refusal(name, override)


def test_the_loss_of_a_branch_that_is_not_there_has_no_effect(files, translate):
    _, notes = translate(files / BN, f"{CFG}.iou_branch_loss={{type: sigmoid_cross_entropy}}")
    assert [note.outcome for note in notes[f"{CFG}.iou_branch_loss"]] == ["no effect"]
