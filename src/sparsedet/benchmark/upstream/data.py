"""The ``dataset:`` section of United-Perception: files, batches, evaluation. The transforms are in `transforms`.

Meaning and defaults of every key: up_semantics §8, §9.2.
"""

from typing import Any

from sparsedet.benchmark.upstream.section import Key, Section, Type, fixed, ignored, part, quote, to, value
from sparsedet.benchmark.upstream.transforms import read_transforms

NO_HEAD = "no head here reads it"
DATASET: dict[str, Key] = {
    "train": part(),
    "test": part(),
    "batch_sampler": part(),
    "dataloader": part(),
    "builder_type": fixed("base", "one data set is trained on and one evaluated"),
    "data_pool": fixed(["train:train", "test:test"], "one data set is trained on and one evaluated"),
    "dataset_timer": ignored("it only measures UP's loader"),
}
COCO: dict[str, Key] = {
    "meta_file": value("text"),
    "image_reader": part(),
    "transformer": value("a list of mappings"),
    "evaluator": part(None),
    "source": ignored("UP never reads it"),
    "class_names": ignored("names come from the annotation file"),
    "has_mask": ignored(NO_HEAD),
    "has_keypoint": ignored(NO_HEAD),
    "has_grid": ignored(NO_HEAD),
    "has_semantic_seg": ignored(NO_HEAD),
    "semantic_seg_prefix": ignored(NO_HEAD),
    "box2mask": ignored(NO_HEAD),
    "unknown_erasing": fixed(False, "images are trained on as they are"),
    "use_ignore": value("true or false", False),
    "cache": ignored("decoded images are kept on disk with data.cache"),
    "clip_box": ignored("predicted boxes are clipped to the image anyway"),
}
READER: dict[str, Key] = {
    "image_dir": value("anything"),
    "color_mode": fixed("RGB", "images are read as RGB"),
    "memcached": ignored("files are read from disk"),
    "to_float32": fixed(False, "transforms work on bytes"),
}
EVALUATOR: dict[str, Key] = {
    "gt_file": value("text"),
    "iou_types": value("anything", ["bbox"]),
    "cmp_key": ignored("each level is saved at its end; training.checkpoints.keep_best compares AP"),
}
DATALOADER: dict[str, Key] = {
    "num_workers": to("training.num_workers", "a whole number", 0),
    "alignment": to("data.pad_multiple", "a whole number", 1),
    "pin_memory": ignored("it changes no result"),
    "worker_init": ignored("every sample is seeded by its own index"),
    "pad_value": fixed(0, "padding is 0 behind the normalisation"),
    "pad_type": fixed("batch_pad", "images are padded at the right and at the bottom"),
}


def read_dataset(dataset: Section) -> None:
    """Translate ``dataset:`` to ``data:`` and to the batch sizes of training and evaluation.

    Raises:
        ConfigError: a key is wrong or refused.
    """
    translation = dataset.translation
    translation.set("data.root", ".", dataset.path)
    keys = dataset.read(DATASET)
    normalisations = [_read_phase(keys[name], name) for name in ("train", "test")]
    if normalisations[0] != normalisations[1]:
        expected = f"the mean and std of train, {normalisations[0]}"
        raise keys["test"].error("dataset", expected, quote(normalisations[1]), "Normalise both alike.")
    _read_batches(keys["batch_sampler"])
    keys["dataloader"].choose({"base": Type(DATALOADER, reason="there is one loader")})
    translation.set("data.inclusive_boxes", True, dataset.path)
    translation.set("data.train_without_annotations", False, dataset.path)
    translation.set("data.val_without_annotations", not translation.up_compat, dataset.path)


def _read_phase(phase: Section, name: str) -> tuple[list[float], list[float]]:
    """Translate ``train`` or ``test`` and return mean and std of its normalisation."""
    at = "data.train" if name == "train" else "data.val"
    chosen = phase.read({"dataset": part()})["dataset"].choose({"coco": Type(COCO, at)})
    kwargs, keys = chosen.kwargs, chosen.values
    kwargs.send("meta_file", keys["meta_file"], f"{at}.annotations")
    reader = keys["image_reader"].choose(
        {"fs_opencv": Type(READER, reason="images are read as RGB, turned as EXIF says")}
    )
    _read_image_dir(reader.kwargs, reader.values["image_dir"], at)
    if name == "train":
        kwargs.send("use_ignore", "ignore" if keys["use_ignore"] else "drop", "data.crowds")
        _ignore_evaluator(keys["evaluator"], kwargs)
        return read_transforms(kwargs.items("transformer"), kwargs, is_train=True)
    kwargs.no_effect("use_ignore", "the evaluation ignores crowds in any case")
    _read_evaluator(keys["evaluator"], kwargs)
    return read_transforms(kwargs.items("transformer"), kwargs, is_train=False)


def _read_image_dir(reader: Section, folder: Any, at: str) -> None:
    folders = folder if isinstance(folder, list) else [folder]
    if len(folders) != 1 or not isinstance(folders[0], str):
        raise reader.error("image_dir", "one folder", quote(folder), "Refused: give a folder above all of them.")
    reader.send("image_dir", folders[0], f"{at}.images")


def _ignore_evaluator(evaluator: Section | None, kwargs: Section) -> None:
    if evaluator is not None:
        kwargs.no_effect("evaluator", "only the test data are evaluated")


def _read_evaluator(evaluator: Section | None, kwargs: Section) -> None:
    if evaluator is None:
        raise kwargs.error("evaluator", "a mapping", "nothing", "Add the COCO evaluator.")
    chosen = evaluator.choose({"COCO": Type(EVALUATOR, "evaluation.evaluator, the COCO metrics of boxes")})
    if chosen.values["gt_file"] != kwargs.data["meta_file"]:
        raise chosen.kwargs.error(
            "gt_file", f"the meta_file '{kwargs.data['meta_file']}'", quote(chosen.values["gt_file"]), "Correct it."
        )
    chosen.kwargs.mapped("gt_file", f"data.val.annotations: {chosen.values['gt_file']}")
    kinds = chosen.values["iou_types"]
    if "bbox" not in kinds:
        raise chosen.kwargs.error("iou_types", "a list with bbox", quote(kinds), "Only boxes are evaluated.")
    chosen.kwargs.no_effect(
        "iou_types", "boxes are evaluated" + ("; no head gives masks or others" if len(kinds) > 1 else "")
    )


def _read_batches(section: Section) -> None:
    order = {
        "dist": Type({"fix_seed": fixed(False, "every epoch has its own order")}, "data.sampler, every epoch anew")
    }
    common: dict[str, Key] = {
        "sampler": part(),
        "batch_size": value("a whole number"),
        "drop_last": fixed(False, "every image is trained on"),
    }
    groups = {**common, "aspect_grouping": to("data.sampler.boundaries", "a list of numbers")}
    chosen = section.choose(
        {
            "base": Type(common, "data.sampler.type", "shuffle"),
            "aspect_ratio_group": Type(groups, "data.sampler.type", "aspect_ratio_groups"),
        }
    )
    chosen.values["sampler"].choose(order)
    places = ("training.batch_size", "training.forward_batch_size", "evaluation.batch_size")
    chosen.kwargs.send("batch_size", chosen.values["batch_size"], *places)
    chosen.kwargs.mapped(
        "batch_size", "images of one device: with N devices set training.batch_size to N times as many"
    )
