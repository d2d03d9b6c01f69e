import pytest

FASTER = "faster.yaml"
HEAD, BOX = "net.roi_head", "net.bbox_head"
RPN_CFG, PRE, DONE = (
    f"net.{name}.kwargs.cfg" for name in ("rpn_post_process", "bbox_head_pre_process", "bbox_head_post_process")
)


@pytest.mark.parametrize(
    ("name", "override", "place", "expected"),
    [
        (FASTER, f"{PRE}.fpn.fpn_levels=[0]", "detector.roi_head.num_levels", 1),
        (FASTER, f"{HEAD}.kwargs.initializer=", "detector.rpn.init_std", 0.01),
    ],
)  # fmt: skip
def test_what_keys_become(name, override, place, expected, native_value):
    assert native_value(name, override, place) == expected


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (FASTER, f"{HEAD}.kwargs.num_classes=3", f"{HEAD}.kwargs.num_classes: expected 2, got 3. Refused: "),
        (FASTER, f"{HEAD}.kwargs.num_anchors=3", f"{HEAD}.kwargs.num_anchors: expected 4, 2 ratios times 2 scales, go"),
        (FASTER, f"{HEAD}.kwargs.num_level=4", f"{HEAD}.kwargs.num_level: expected the neck's 5, got 4."),
        (FASTER, f"{RPN_CFG}.test.roi_predictor.kwargs.nms.nms_iou_thresh=0.5", "test.roi_predictor: expected the nms"),
        (FASTER, f"{RPN_CFG}.train.roi_predictor.kwargs.merger.kwargs.top_n=99", "merger.kwargs.top_n: expected post_"),
        (FASTER, f"{RPN_CFG}.train.roi_predictor.kwargs.pre_nms_score_thresh=0.1", "pre_nms_score_thresh: expected 0,"),
        (FASTER, f"{RPN_CFG}.roi_supervisor.kwargs.sampler.type=balanced", "sampler.type: expected one of ['naive'], "),
        (FASTER, f"{RPN_CFG}.loc_loss.type=smooth_l1_loss", "loc_loss.type: expected one of ['l1_loss'], got 'smooth_"),
        (FASTER, f"{PRE}.bbox_supervisor.kwargs.bbox_normalize.means=[0, 0, 1, 0]", "means: expected [0, 0, 0, 0], go"),
        (FASTER, f"{PRE}.fpn.fpn_levels=[1, 2]", "fpn_levels: expected indices from 0 on, at most 5 of them, got [1, "),
        (FASTER, f"{PRE}.roipooling.method=roipool", "method: expected roialignpool, got 'roipool'. Refused: "),
        (FASTER, f"{BOX}.kwargs.cfg.roipooling.pool_size=7", "pool_size: expected 5, got 7. Refused: "),
        (FASTER, f"{BOX}.kwargs.initializer.method=normal", "initializer.method: expected msra, got 'normal'. Refused"),
        (FASTER, f"{BOX}.kwargs.cfg.share_location=true", "share_location: expected false, got true. Refused: "),
        (FASTER, f"{DONE}.share_location=true", "share_location: expected false, got true. Refused: "),
        (FASTER, f"{DONE}.share_location=", "share_location: expected true or false, got null."),
        (FASTER, f"{DONE}.ohem={{}}", "ohem: expected null, got {}. Refused: "),
        (FASTER, f"{DONE}.bbox_predictor.kwargs.bbox_normalize.stds=[1, 1, 1, 1]", "stds: expected [0.2, 0.2, 0.3, 0."),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(name, override, message, refusal):
    assert message in refusal(name, override)
