import pytest

PLAIN, BN, IOU, FASTER = (f"{name}.yaml" for name in ("retina_plain", "retina_bn", "retina_iou", "faster"))
TRAIN, TEST = "dataset.train.dataset.kwargs", "dataset.test.dataset.kwargs"
NORM = "{type: normalize, kwargs: {mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.3]}}"


def transforms(*items, end=f"{{type: to_tensor}}, {NORM}"):
    return f"{TRAIN}.transformer=[{', '.join([*items, end])}]"


@pytest.mark.parametrize(
    ("item", "native"),
    [  # UP's defaults where a key is absent
        ("{type: flip, kwargs: {flip_p: 1}}", {"type": "horizontal_flip", "p": 1}),
        ("{type: keep_ar_resize, kwargs: {scales: [64]}}",
         {"type": "resize_shorter", "shorter": 64, "max_longer": None, "interpolation": "opencv"}),
        ("{type: keep_ar_resize, kwargs: {scales: [64, 80], max_size: 100, separate_wh: false}}",
         {"type": "resize_shorter", "shorter": [64, 80], "max_longer": 100, "interpolation": "opencv"}),
        ("{type: fix_output_resize, kwargs: {scales: [64, 80]}}",
         {"type": "resize", "size": [64, 80], "interpolation": "opencv"}),
        ("{type: stitch_expand}", {"type": "stitch_expand", "max_scale": 2.0, "p": 0.5}),
        ("{type: crop}",
         {"type": "square_crop", "min_scale": 0.5, "p": 0.5, "fill": [127, 127, 127], "num_tries": 100}),
        ("{type: crop, kwargs: {means: [1.9, 2, 3.1], crop_prob: 0.2}}",
         {"type": "square_crop", "min_scale": 0.5, "p": 0.2, "fill": [1, 2, 3], "num_tries": 100}),
        ("{type: mosaic, kwargs: {extra_input: true}}", {"type": "mosaic", "size": 640, "p": 1.0, "fill": 0}),
        ("{type: random_perspective}",
         {"type": "random_perspective", "degrees": 0.0, "translate": 0.1, "scale": 0.5, "shear": 0.0,
          "perspective": 0.0, "fill": 0, "margin": 0, "only_mosaics": True}),
        ("{type: augment_hsv}", {"type": "hsv_jitter", "hue": 0.5, "saturation": 0.5, "value": 0.5}),
    ],
)  # fmt: skip
def test_transforms(item, native, files, translate):
    data, _ = translate(files / PLAIN, transforms(item))
    assert data["data"]["train_transforms"] == [native]


def test_color_jitter_did_nothing_and_the_crops_scale_neither(files, translate):
    data, notes = translate(files / BN)
    assert "color_jitter" not in [item["type"] for item in data["data"]["train_transforms"]]
    for key in ("transformer[2].type", "transformer[2].kwargs.brightness", "transformer[1].kwargs.scale"):
        assert [note.outcome for note in notes[f"{TRAIN}.{key}"]] == ["no effect"]
    assert "prob is 0" in notes[f"{TRAIN}.transformer[2].type"][0].text
    data, _ = translate(files / PLAIN, transforms("{type: color_jitter, kwargs: {prob: 0, hue: 3}}"))
    assert data["data"]["train_transforms"] == []


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (PLAIN, transforms("{type: flop}"), "transformer[0].type: expected one of ['augment_hsv', "),
        (PLAIN, transforms("{type: flop}"), "got 'flop'. Did you mean 'flip'?"),
        (PLAIN, transforms("{type: flip}"), "transformer[0].kwargs.flip_p: expected a number, got nothing. Add the ke"),
        (PLAIN, transforms("{type: flip, kwargs: {p: 1}}"), "transformer[0].kwargs.p: expected one of ['flip_p']"),
        (PLAIN, transforms("{type: to_tensor}"), "transformer[0].type: expected one of"),
        (PLAIN, transforms(end=NORM), "transformer: expected to_tensor and normalize at the end, got [\"normalize\"]."),
        (PLAIN, transforms("{type: color_jitter, kwargs: {prob: 1}}"), "prob: expected 0, UP's default, got 1. Refuse"),
        (PLAIN, transforms("{type: keep_ar_resize, kwargs: {scales: [-1]}}"), "scales: expected positive lengths, got"),
        (FASTER, f"{TRAIN}.transformer=3", "transformer: expected a list of mappings, got 3."),
        (PLAIN, transforms("{type: random_perspective, kwargs: {border: [1, 2]}}"), "border: expected twice the same "),
        (PLAIN, transforms("{type: random_perspective, kwargs: {max_try: 9}}"), "max_try: expected 1, got 9. Refused:"),
        (PLAIN, transforms("{type: mosaic, kwargs: {mosaic_self: true}}"), "mosaic_self: expected false, got true. Re"),
        (PLAIN, f"{TEST}.transformer=[{{type: flip, kwargs: {{flip_p: 1}}}}, {{type: to_tensor}}, {NORM}]",
         "transformer[0].type: expected one of ['fix_output_resize', 'keep_ar_resize'], got 'flip'."),
        (PLAIN, f"{TEST}.transformer=[{{type: to_tensor}}, {NORM.replace('0.5', '0.6')}]",
         "dataset.test.dataset: expected the mean and std of train, ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]), got [[0.6, "),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(name, override, message, refusal):
    assert message in refusal(name, override)
