import pytest

from sparsedet.common.errors import ConfigError

PLAIN, IOU = "retina_plain.yaml", "retina_iou.yaml"
BACKBONE, NECK, HEAD, POST = (f"net.{name}" for name in ("backbone", "neck", "roi_head", "post_process"))


@pytest.mark.parametrize(
    ("name", "override", "place", "expected"),
    [
        (PLAIN, f"{BACKBONE}.kwargs.frozen_layers=[]", "detector.backbone.frozen_stages", 0),
        (PLAIN, f"{BACKBONE}.kwargs.frozen_layers=[0, 1, 2, 3, 4]", "detector.backbone.frozen_stages", 5),
        (PLAIN, f"{BACKBONE}.kwargs.normalize={{type: msbench_freeze_bn}}", "detector.backbone.norm",
         "batch_norm_fixed_stats"),
        (PLAIN, f"{BACKBONE}.kwargs.multiplier=2", "detector.backbone.width", 32),
        (PLAIN, f"{BACKBONE}.type=resnet152", "detector.backbone.type", "resnet152"),
        (PLAIN, f"{NECK}.kwargs.initializer={{method: xavier}}", "detector.neck.init_std", None),
        (PLAIN, f"{NECK}.kwargs.initializer={{method: normal}}", "detector.neck.init_std", 0.01),
        (PLAIN, f"{NECK}.kwargs.initializer={{method: normal, std: 0.05}}", "detector.neck.init_std", 0.05),
        (PLAIN, f"{NECK}.kwargs.normalize={{type: sync_bn, kwargs: {{group_size: 3}}}}",
         "detector.neck.sync_group_size", 3),
    ],
)  # fmt: skip
def test_what_keys_become(name, override, place, expected, native_value):
    assert native_value(name, override, place) == expected


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (PLAIN, f"{NECK}.type=FPM", f"{NECK}.type: expected one of ['BboxFC', "),
        (PLAIN, f"{NECK}.type=FPM", "got 'FPM'. Did you mean 'FPN'? Correct it."),
        (PLAIN, f"{NECK}.type=resnet18", "net: expected resnet18|resnet34|resnet50|resnet101|resnet152 > FPN > Retina"),
        (PLAIN, "net.extra={name: extra, type: FPN, prev: neck, kwargs: {}}", "got resnet34 > FPN > RetinaSubNet > re"),
        (PLAIN, f"{NECK}.prev=roi_head", f"{NECK}.prev: expected 'backbone', got 'roi_head'. Correct or add it."),
        (PLAIN, f"{HEAD}.prev=", f"{HEAD}.prev: expected 'neck', got null."),
        (PLAIN, f"{POST}.type=retina_post_iou", f"{POST}.type: expected 'retina_post' after RetinaSubNet, got 'retina"),
        (PLAIN, f"{HEAD}.type=RetinaHeadWithBNIOU", f"{POST}.type: expected 'retina_post_iou' after RetinaHeadWithBNI"),
        (PLAIN, f"{HEAD}.wrappers=[]", f"{HEAD}.wrappers: expected one of ['kwargs', 'name', 'prev', 'type'], got the"),
        (PLAIN, f"{BACKBONE}.kwargs.deep_stem=true", "deep_stem: expected false, got true. Refused: the stem is one 7"),
        (PLAIN, f"{BACKBONE}.kwargs.avg_down=true", "avg_down: expected false, got true. Refused: "),
        (PLAIN, f"{BACKBONE}.kwargs.layer_deform=[0, 0, 1, 1, 1]", "layer_deform: expected [0, 0, 0, 0, 0], got [0, 0"),
        (PLAIN, f"{BACKBONE}.kwargs.style=caffe", "style: expected pytorch, got 'caffe'. Refused: "),
        (PLAIN, f"{BACKBONE}.kwargs.checkpoint=true", "checkpoint: expected false, got true. Refused: "),
        (PLAIN, f"{BACKBONE}.kwargs.drop_path_rate=0.1", "drop_path_rate: expected 0, got 0.1. Refused: "),
        (PLAIN, f"{BACKBONE}.kwargs.normalize={{type: gn}}", "normalize.type: expected one of ['freeze_bn', 'msbench_"),
        (PLAIN, f"{BACKBONE}.kwargs.normalize={{type: solo_bn, kwargs: {{eps: 1e-3}}}}", "normalize.kwargs.eps: expec"),
        (PLAIN, f"{BACKBONE}.kwargs.frozen_layers=[0, 2]", "frozen_layers: expected layers from 0 on without a gap, g"),
        (PLAIN, f"{BACKBONE}.kwargs.out_strides=[8, 16, 16]", "out_strides: expected [8, 16, 32] for 3 levels, got [8"),
        (PLAIN, f"{BACKBONE}.kwargs.width=[16, 16, 32, 64, 100]", "width: expected whole widths in the proportion 1:1"),
        (PLAIN, f"{BACKBONE}.kwargs.multiplier=0.3", "width: expected whole widths in the proportion 1:1:2:4:8"),
        (PLAIN, f"{BACKBONE}.kwargs.initializer={{method: xavier}}", "initializer.method: expected msra, got 'xavier'"),
        (IOU, f"{BACKBONE}.kwargs.initializer=", "initializer: expected {method: msra}, got nothing."),
        (PLAIN, f"{NECK}.kwargs.num_level=2", "num_level: expected at least the backbone's 3, got 2."),
        (PLAIN, f"{NECK}.kwargs.num_level=5", "out_strides: expected [8, 16, 32, 64, 128] for 5 levels, got [8, 16, 3"),
        (PLAIN, f"{NECK}.kwargs.upsample=bilinear", "upsample: expected nearest, got 'bilinear'. Refused: "),
        (PLAIN, f"{NECK}.kwargs.downsample=max", "downsample: expected conv or pool, got 'max'."),
        (PLAIN, f"{NECK}.kwargs.use_p5=true", "use_p5: expected false, got true. Refused: "),
        (PLAIN, f"{NECK}.kwargs.normalize={{type: freeze_bn}}", "normalize.type: expected one of ['solo_bn', 'sync_bn"),
        (PLAIN, f"{NECK}.kwargs.initializer={{method: msra}}", "initializer.method: expected one of ['normal', 'xavie"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(name, override, message, refusal):
    assert message in refusal(name, override)


def test_names_of_entries_with_parameters_are_those_of_checkpoints(edited, translate):
    path = edited("retina_plain.yaml", ("name: roi_head", "name: head"))
    with pytest.raises(ConfigError, match=r"net\.head\.name: expected 'roi_head', got 'head'"):
        translate(path)


def test_weights_of_the_backbone_make_its_first_draw_irrelevant(files, translate):
    data, _ = translate(files / IOU, f"{BACKBONE}.kwargs.initializer=", "saver.pretrain_model=x.pth")
    assert data["detector"]["backbone"]["init"] == "lecun_normal"


def test_what_has_no_effect_says_so(files, translate):
    _, notes = translate(files / PLAIN)
    for key in (f"{NECK}.kwargs.start_level", f"{NECK}.kwargs.out_strides", f"{NECK}.prev", f"{HEAD}.name"):
        assert [note.outcome for note in notes[key]] == ["no effect"]
