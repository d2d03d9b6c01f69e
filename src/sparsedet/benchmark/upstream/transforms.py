"""The ``transformer:`` lists of United-Perception.

Meaning and defaults of every key, and what each transform really did: up_semantics §8.3.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sparsedet.benchmark.upstream.section import Chosen, Key, Section, Type, fixed, ignored, quote, value

Native = dict[str, Any] | None
Builder = Callable[[Chosen], Native]
RESIZE: dict[str, Key] = {
    "scales": value("a list of whole numbers"),
    "max_size": value("a whole number", None),
    "separate_wh": ignored("boxes follow the true size of the image, as with true"),
}


def _mapped(chosen: Chosen, **targets: str) -> dict[str, Any]:
    """Return native values by their names; `targets` gives the native name of each key, which is noted."""
    for key, name in targets.items():
        chosen.kwargs.mapped(key, f"{name}: {chosen.values[key]}")
    return {name: chosen.values[key] for key, name in targets.items()}


def _flip(chosen: Chosen) -> Native:
    return {"type": "horizontal_flip", **_mapped(chosen, flip_p="p")}


def _resize_shorter(chosen: Chosen) -> Native:
    scales, longest = chosen.values["scales"], chosen.values["max_size"]
    if not scales or min(scales) <= 0:
        raise chosen.kwargs.error("scales", "positive lengths", quote(scales), "Correct the list.")
    shorter = scales[0] if len(scales) == 1 else scales
    chosen.kwargs.mapped("scales", f"shorter: {shorter}")
    chosen.kwargs.mapped("max_size", f"max_longer: {longest}")
    return {"type": "resize_shorter", "shorter": shorter, "max_longer": longest, "interpolation": "opencv"}


def _resize(chosen: Chosen) -> Native:
    chosen.kwargs.no_effect("max_size", "scales alone give the size")
    return {"type": "resize", **_mapped(chosen, scales="size"), "interpolation": "opencv"}


def _stitch_expand(chosen: Chosen) -> Native:
    return {"type": "stitch_expand", **_mapped(chosen, expand_ratios="max_scale", expand_prob="p")}


def _crop(chosen: Chosen) -> Native:
    means = chosen.values["means"]
    fill = [int(mean) for mean in (means if isinstance(means, list) else [means] * 3)]
    chosen.kwargs.mapped("means", f"fill: {fill}, cut to whole grey levels as UP cuts them")
    chosen.kwargs.no_effect("scale", "UP tests box sizes with it, but then keeps every box")
    return {"type": "square_crop", "min_scale": 0.5, "fill": fill, "num_tries": 100, **_mapped(chosen, crop_prob="p")}


def _color_jitter(chosen: Chosen) -> Native:
    if chosen.values["prob"]:
        raise chosen.kwargs.error(
            "prob",
            "0, UP's default",
            quote(chosen.values["prob"]),
            "Refused: use color_jitter in a native recipe.",
        )
    for key in chosen.kwargs.data:
        chosen.kwargs.no_effect(key, "prob is 0 where it is not given: UP never changed a colour")
    return None


def _mosaic(chosen: Chosen) -> Native:
    return {"type": "mosaic", **_mapped(chosen, tar_size="size", mosaic_prob="p", fill_color="fill")}


def _perspective(chosen: Chosen) -> Native:
    border = chosen.values["border"]
    if len(border) != 2 or border[0] != border[1] or border[0] > 0:
        raise chosen.kwargs.error(
            "border", "twice the same number, at most 0", quote(border), "Refused: it cuts a margin."
        )
    chosen.kwargs.mapped("border", f"margin: {-border[0]}")
    names = {key: key for key in ("degrees", "translate", "scale", "shear", "perspective")}
    native = _mapped(chosen, **names, fill_color="fill")
    return {"type": "random_perspective", **native, "margin": -border[0], "only_mosaics": True}


def _hsv(chosen: Chosen) -> Native:
    return {"type": "hsv_jitter", **_mapped(chosen, hgain="hue", sgain="saturation", vgain="value")}


CLIP = fixed(True, "boxes are clipped to the image")
TRAIN: Mapping[str, tuple[Type, Builder]] = {
    "flip": (Type({"flip_p": value("a number")}, "horizontal_flip"), _flip),
    "keep_ar_resize": (Type(RESIZE, "resize_shorter, interpolation: opencv"), _resize_shorter),
    "fix_output_resize": (Type(RESIZE, "resize, interpolation: opencv"), _resize),
    "stitch_expand": (
        Type({"expand_ratios": value("a number", 2.0), "expand_prob": value("a number", 0.5)}, "stitch_expand"),
        _stitch_expand,
    ),
    "crop": (
        Type(
            {
                "means": value("anything", 127.5),
                "scale": value("a number", 600),
                "crop_prob": value("a number", 0.5),
            },
            "square_crop",
        ),
        _crop,
    ),
    "color_jitter": (
        Type(
            {
                "prob": value("a number", 0),
                **dict.fromkeys(
                    ("brightness", "contrast", "saturation", "hue", "brightness_delta", "hue_delta", "channel_shuffle"),
                    value("anything", 0),
                ),
            },
            reason="prob is 0 where it is not given: UP never changed a colour",
        ),
        _color_jitter,
    ),
    "mosaic": (
        Type(
            {
                "extra_input": ignored("the other images come from the data set"),
                "mosaic_prob": value("a number", 1.0),
                "tar_size": value("a whole number", 640),
                "fill_color": value("a whole number", 0),
                "mosaic_self": fixed(False, "the other images are drawn from all"),
                "memcached": ignored("files are read from disk"),
                "clip_box": CLIP,
            },
            "mosaic",
        ),
        _mosaic,
    ),
    "random_perspective": (
        Type(
            {
                **dict.fromkeys(("degrees", "shear", "perspective"), value("a number", 0.0)),
                "translate": value("a number", 0.1),
                "scale": value("a number", 0.5),
                "border": value("a list of whole numbers", [0, 0]),
                "fill_color": value("a whole number", 0),
                "max_try": fixed(1, "one view is drawn"),
                "clip_box": CLIP,
            },
            "random_perspective, only_mosaics: true",
        ),
        _perspective,
    ),
    "augment_hsv": (
        Type(
            {
                **dict.fromkeys(("hgain", "sgain", "vgain"), value("a number", 0.5)),
                "color_mode": fixed("RGB", "images are read as RGB"),
            },
            "hsv_jitter",
        ),
        _hsv,
    ),
}
TEST = {name: TRAIN[name] for name in ("keep_ar_resize", "fix_output_resize")}
LAST = {
    "to_tensor": Type(reason="every image becomes a tensor in [0, 1] before it is normalised"),
    "normalize": Type(
        {
            "mean": value("a list of numbers"),
            "std": value("a list of numbers"),
            "inplace": ignored("it changes no result"),
        },
        "data.mean, data.std",
    ),
}


def read_transforms(items: list[Section], kwargs: Section, is_train: bool) -> tuple[list[float], list[float]]:
    """Translate the list at ``transformer`` of `kwargs` and return mean and std of its end; test data are only resized.

    Raises:
        ConfigError: a transform is unknown, has a wrong or refused key, or the list does not end with ``to_tensor``
            and ``normalize``.
    """
    ending = [item.data.get("type") for item in items[-2:]]
    if ending != list(LAST):
        raise kwargs.error("transformer", "to_tensor and normalize at the end", quote(ending), "Add or move them.")
    table = TRAIN if is_train else TEST
    types = {name: kind for name, (kind, _) in table.items()}
    native = []
    for item in items[:-2]:
        chosen = item.choose(types)
        native.append(table[chosen.name][1](chosen))
    target = "data.train_transforms" if is_train else "data.val_transforms"
    kwargs.translation.set(target, [item for item in native if item is not None], (*kwargs.path, "transformer"))
    items[-2].choose(LAST)
    last = items[-1].choose(LAST)
    for key in ("mean", "std"):
        last.kwargs.send(key, last.values[key], f"data.{key}")
    return last.values["mean"], last.values["std"]
