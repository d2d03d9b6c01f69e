import pytest

from sparsedet.common.errors import ConfigError

PLAIN, BN, IOU, FASTER = (f"{name}.yaml" for name in ("retina_plain", "retina_bn", "retina_iou", "faster"))
TRAIN, TEST = "dataset.train.dataset.kwargs", "dataset.test.dataset.kwargs"
NORM = "{type: normalize, kwargs: {mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.3]}}"


@pytest.mark.parametrize(
    ("name", "override", "native"),
    [
        (PLAIN, f"{TRAIN}.use_ignore=true", {"crowds": "ignore"}),
        (PLAIN, f"{TEST}.use_ignore=true", {"crowds": "drop"}),
        (PLAIN, f"{TRAIN}.image_reader.kwargs.image_dir=[a]",
         {"train": {"annotations": "ann/train.json", "images": "a"}}),
        (BN, "dataset.batch_sampler.type=base", None),
        (PLAIN, "dataset.batch_sampler.type=aspect_ratio_group", None),
        (PLAIN, "dataset.dataloader.kwargs={}", {"pad_multiple": 1}),
        (PLAIN, "up_compat=true", {"val_without_annotations": False}),
        (PLAIN, "up_compat=false", {"val_without_annotations": True, "train_without_annotations": False}),
        (PLAIN, "seed=1", {"inclusive_boxes": True, "root": "."}),
    ],
)  # fmt: skip
def test_what_keys_become(name, override, native, files, translate):
    if native is None:
        with pytest.raises(ConfigError, match=r"aspect_grouping: expected (one of|a list of numbers)"):
            translate(files / name, override)
        return
    data, _ = translate(files / name, override)
    assert data["data"].items() >= native.items()


def test_the_root_is_the_current_folder(files, tmp_path, monkeypatch):
    from sparsedet.benchmark.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(files / PLAIN).recipe
    assert recipe.data.root == tmp_path
    assert recipe.detector.backbone.weights == str(tmp_path / "weights" / "resnet34-0123abcd.pth")
    assert load_recipe(files / BN).recipe.initial_checkpoint == tmp_path / "start.pth"


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (PLAIN, "dataset.train.dataset.type=lvis", "dataset.train.dataset.type: expected one of ['coco'], got 'lvis'."),
        (PLAIN, f"{TRAIN}.image_reader.type=osg", "image_reader.type: expected one of ['fs_opencv'], got 'osg'."),
        (PLAIN, f"{TRAIN}.image_reader.kwargs.color_mode=BGR", "color_mode: expected RGB, got 'BGR'. Refused: "),
        (PLAIN, f"{TRAIN}.image_reader.kwargs.image_dir=[a, b]", "image_dir: expected one folder, got [\"a\", \"b\"]."),
        (PLAIN, f"{TRAIN}.unknown_erasing=true", "unknown_erasing: expected false, got true. Refused: "),
        (PLAIN, f"{TRAIN}.use_ignores=true", "use_ignores: expected one of ['box2mask', "),
        (PLAIN, f"{TEST}.evaluator=", "evaluator: expected a mapping, got nothing. Add the COCO evaluator."),
        (PLAIN, f"{TEST}.evaluator.kwargs.gt_file=x.json", "gt_file: expected the meta_file 'ann/val.json', got 'x.js"),
        (PLAIN, f"{TEST}.evaluator.kwargs.iou_types=[segm]", "iou_types: expected a list with bbox, got [\"segm\"]."),
        (PLAIN, f"{TEST}.evaluator.type=VOC", "evaluator.type: expected one of ['COCO'], got 'VOC'."),
        (PLAIN, "dataset.batch_sampler.kwargs.sampler.type=local", "sampler.type: expected one of ['dist'], got 'loca"),
        (PLAIN, "dataset.batch_sampler.kwargs.sampler.kwargs.fix_seed=true", "fix_seed: expected false, got true. Ref"),
        (PLAIN, "dataset.batch_sampler.kwargs.drop_last=true", "drop_last: expected false, got true. Refused: "),
        (PLAIN, "dataset.dataloader.type=pytorch", "dataloader.type: expected one of ['base'], got 'pytorch'."),
        (PLAIN, "dataset.dataloader.kwargs.pad_value=1", "pad_value: expected 0, got 1. Refused: "),
        (PLAIN, "dataset.dataloader.kwargs.pad_type=center", "pad_type: expected batch_pad, got 'center'. Refused: "),
        (PLAIN, "dataset.data_pool=[train:train]", "data_pool: expected [\"train:train\", \"test:test\"]"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(name, override, message, refusal):
    assert message in refusal(name, override)


def test_what_has_no_effect_says_so(files, translate):
    extra = {"source": "x", "class_names": "[a]", "has_mask": "true", "cache": "{a: 1}", "clip_box": "false"}
    _, notes = translate(files / PLAIN, *(f"{TRAIN}.{key}={value}" for key, value in extra.items()))
    for key in extra:
        assert [note.outcome for note in notes[f"{TRAIN}.{key}"]] == ["no effect"]
    assert [note.outcome for note in notes[f"{TEST}.evaluator.kwargs.iou_types"]] == ["no effect"]
