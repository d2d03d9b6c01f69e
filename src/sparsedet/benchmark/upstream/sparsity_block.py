"""The ``sparsity:`` block of MSBench and United-Perception, accepted as it was published.

Meaning of each key: msbench_semantics §1. The rule of ``prun_algo: 1`` is a vendor's secret; it becomes the open
`energy` allocation, with ``prun_algo_tuning`` as its tuning. Masks are fixed within a level here, where MSBench
recomputes them at every forward pass.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsedet.benchmark.upstream.note import Note
from sparsedet.benchmark.upstream.section import (
    Chosen,
    Key,
    Section,
    Translation,
    Type,
    fixed,
    ignored,
    part,
    quote,
    value,
)
from sparsedet.common.document import Document

BETTER_RULE = (
    "the open energy rule stands in for the vendor's closed one; allocation {type: lamp} keeps more AP at high sparsity"
)
FIXED_MASKS = "masks are fixed within a level, where MSBench makes them anew at every forward pass"
NOT_COMPENSATED = (
    "every layer gets the target itself, and what is excluded is not made up for, so the total falls short, as in "
    "MSBench; compensate: true makes up for it"
)
EXACT = "counts are exact here, there is nothing to tolerate"
WRAPPER = "module."
CAP = "it caps every layer relative to the level's target; sparsity.limits caps single layers"
RESTARTS = "the learning-rate schedule starts again at each level"
NOT_TRACED = "nothing is traced here"
ASP = "masks are made once"
PERMUTED = (
    "sparsity.pattern.permute: true; channels are reordered by our own search where the network's function stays "
    "what it was, and permutation.json in the run folder says where not and why"
)
MAGNITUDE = "magnitude decides, anywhere in a tensor; sparsity.pattern {type: channel} prunes whole filters"
WITHOUT_TRAINING = "it is for pruning without training; sparsity.criterion {type: obc} is our way to do that"

BLOCK: dict[str, Key] = {
    "scheduler": part(),
    "mask_generator": part(None),
    "fake_sparse": part(None),
    "leaf_module": ignored(NOT_TRACED),
    "fuse_bn": fixed(False, "batch norms stay; fold them at export"),
    "sparsity": ignored("only MSBench's ADMM scheduler reads it"),
}
GENERATORS = {"NormalMaskGenerator": Type({"structured": fixed(False, MAGNITUDE), "func": fixed(None, MAGNITUDE)},
                                          "sparsity.pattern: unstructured, sparsity.criterion: magnitude")}  # fmt: skip
FAKE_SPARSE = dict.fromkeys(
    ("FakeSparse", "DefaultFakeSparse"),
    Type(
        {
            "mask_is_static": fixed(False, WITHOUT_TRAINING),
            "weight_correction": fixed(False, WITHOUT_TRAINING),
        },
        f"masks beside the weights; {FIXED_MASKS}",
    ),
)
LEVEL_WISE: dict[str, Key] = {
    "sparsity_table": value("a list of numbers", [30, 40, 50, 60, 70, 80, 90]),
    "total_iters": value("anything", None),
    "no_prune_keyword": value("text", ""),
    "no_prune_layer": value("text", ""),
    "prun_algo": value("anything", 1),
    "prun_algo_tuning": value("a number", 0.5),
    "prun_hw_aware": value("anything", ""),
    "dw_no_prune": value("true or false", False),
    "do_sparse_analysis": value("true or false", True),
    "output_dir": value("text", "./sparse_analysis"),
    "save_dir": value("text", "./model_save_path"),
    "default_input_shape": value("anything", None),
    "default_input_custom": ignored("the run's own images give the input"),
    "mask_dict": value("anything", None),
    "sparse_rate_tolerance": ignored(EXACT),
    **dict.fromkeys(("prune_tolerance_max", "prune_tolerance_min"), fixed(1.0, CAP)),
    "lr_scheduler": ignored(RESTARTS),
    "init_lr": ignored(RESTARTS),
    "verbose": ignored("the table of each level is always written"),
}
AMPERE: dict[str, Key] = {
    "mask_calculator": value("text", "m4n2_1d"),
    "allow_recompute_mask": fixed(False, ASP),
    "allow_permutation": value("true or false", False),
    "verbosity": ignored("the list of skipped layers is always written"),
    "whitelist": fixed(None, "sparsity.targets.include chooses the layers"),
}
BASE: dict[str, Key] = {"no_prune_keyword": value("text", ""), "no_prune_layer": value("text", "")}
SCHEDULERS = {
    "AmbaLevelPruneScheduler": Type(LEVEL_WISE, "sparsity.schedule.type", "level_wise"),
    "AmpereScheduler": Type(AMPERE, "sparsity.schedule.type", "one_shot"),
}
BASE_SCHEDULER = {"BaseScheduler": Type(BASE, "sparsity.schedule.type", "one_shot")}
CHANNELS = "channels are not ranked so; sparsity.pattern {type: channel} prunes whole filters by magnitude"
RANDOM = "masks are not drawn at random; sparsity.schedule {type: cubic} raises the sparsity step by step, as it does"
LEARNED = "thresholds are not learned; sparsity.schedule {type: dynamic} lets weights return, {type: cubic} is gradual"
NEAREST = {
    "BaseScheduler": "by itself it sets no sparsity; sparsity.schedule {type: one_shot, sparsity: 0.5} prunes once",
    "ProbMaskPruneScheduler": RANDOM,
    "STRScheduler": LEARNED,
    "ADMMScheduler": "there is no penalty term; sparsity.schedule {type: cubic} raises the sparsity step by step",
    "NMMaskGenerator": "AmpereScheduler is the way to 2:4, or sparsity.pattern {type: n_m, n: 2, m: 4}",
    "NuclearMaskGenerator": CHANNELS,
    "FPGMMaskGenerator": CHANNELS,
    "ProbMaskGenerator": RANDOM,
    "ProbMaskFakeSparse": RANDOM,
    "STRMaskGenerator": LEARNED,
    "STRFakeSparse": LEARNED,
    "FCPTSMaskGenerator": WITHOUT_TRAINING,
    "FCPTSFakeSparse": WITHOUT_TRAINING,
}
"""Type that is refused -> the reason, and the nearest thing there is."""
CALCULATORS: dict[str, dict[str, Any]] = {
    "m4n2_1d": {"type": "n_m", "n": 2, "m": 4, "eligibility": "asp"},
    "m4n2_2d_best": {"type": "n_m_2d", "method": "best"},
    "m4n2_2d_greedy": {"type": "n_m_2d", "method": "greedy"},
}
REFUSED_UNLESS_EMPTY = {
    "prun_hw_aware": "a chip's limits are a vendor's secret; the open alternative is sparsity.limits, the largest "
    "sparsities of single layers, also from a file",
    "mask_dict": "masks are read from sparsedet checkpoints: set initial_checkpoint",
}

Exclude = Callable[[Sequence[str], Sequence[str], Section], list[str]]
"""Returns native patterns for the keywords and layer names that a block excludes."""


def has_block(document: Document) -> bool:
    """Tell MSBench's block from a native one by its scheduler or mask generator."""
    block = document.data.get("sparsity")
    return isinstance(block, dict) and bool({"scheduler", "mask_generator"} & set(block))


def translate_document(document: Document) -> tuple[Note, ...]:
    """Replace MSBench's block in a recipe document, if there is one, by the native one.

    Returns:
        one note for each key of the block; none for a native recipe.

    Raises:
        ConfigError: a key is unknown, or asks for what is refused; the message names the key and the reason.
    """
    if not has_block(document):
        return ()
    block = document.data["sparsity"]
    translation = Translation(document, document)
    del document.data["sparsity"]
    if "leaf_module" in document.data:
        root = Section(translation, (), {"leaf_module": document.data.pop("leaf_module")})
        root.no_effect("leaf_module", NOT_TRACED)
    read_block(Section(translation, ("sparsity",), block), exclude_own_names, "expected_steps")
    return tuple(translation.notes)


def read_block(block: Section, exclude: Exclude, total_iters: str = "", with_base: bool = False) -> Chosen:
    """Translate a block into ``sparsity`` and ``write_analysis``.

    Args:
        block: MSBench's block.
        exclude: what keywords and names of layers become.
        total_iters: native key for the number of steps; "" where the program that read the file overwrote it.
        with_base: accept BaseScheduler, whose sparsity a script sets.

    Returns:
        the scheduler as it was read.

    Raises:
        ConfigError: see `translate_document`.
    """
    keys = block.read(BLOCK)
    chosen = _choose(keys["scheduler"], {**SCHEDULERS, **(BASE_SCHEDULER if with_base else {})})
    if chosen.name == "AmpereScheduler":
        for key in ("mask_generator", "fake_sparse"):
            block.no_effect(key, "AmpereScheduler never read it")
        _read_ampere(chosen.kwargs, chosen.values)
        return chosen
    is_base = chosen.name == "BaseScheduler"
    keys["scheduler"].mapped("type", FIXED_MASKS)
    for key, types in (("mask_generator", GENERATORS), ("fake_sparse", FAKE_SPARSE)):
        if keys[key] is not None:
            _choose(keys[key], types)
    read = _read_base if is_base else _read_level_wise
    read(chosen.kwargs, chosen.values, exclude, total_iters)
    return chosen


def _choose(section: Section, types: Mapping[str, Type]) -> Chosen:
    name = section.data.get("type")
    if isinstance(name, str) and name in NEAREST and name not in types:
        raise section.error("type", f"one of {sorted(types)}", repr(name), f"Refused: {NEAREST[name]}.")
    return section.choose(types)


def exclude_own_names(keywords: Sequence[str], layers: Sequence[str], kwargs: Section) -> list[str]:
    """Return patterns for names of our own modules, which may stand behind the ``module.`` of a DDP wrapper."""
    kwargs.mapped("no_prune_keyword", f"sparsity.targets.exclude: {keywords or 'nothing'} (in any part of the name)")
    kwargs.mapped("no_prune_layer", f"sparsity.targets.exclude: {layers or 'nothing'} (exact)")
    parts = (re.escape(word.removeprefix(WRAPPER)) for word in keywords)
    return [*(f"re:.*{word}.*" for word in parts), *map(_exact, layers)]


def _exact(layer: str) -> str:
    if not layer.startswith(WRAPPER):
        return layer
    return f"re:({re.escape(WRAPPER)})?{re.escape(layer.removeprefix(WRAPPER))}"


# --- the schedulers -----------------------------------------------------------------------------------------


def _read_level_wise(kwargs: Section, keys: dict[str, Any], exclude: Exclude, total_iters: str) -> None:
    translation = kwargs.translation
    translation.set("sparsity.scope", "all", kwargs.path)
    translation.set("sparsity.targets.include_frozen", True, kwargs.path)
    table = keys["sparsity_table"]
    if wrong := [percent for percent in table if not 0 <= percent < 100]:
        raise kwargs.error("sparsity_table", "percentages in [0, 100)", str(wrong[0]), "Correct the table.")
    kwargs.send("sparsity_table", [float(percent) / 100 for percent in table], "sparsity.schedule.levels")
    if translation.up_compat:
        translation.set("sparsity.schedule.up_compat", True, ("up_compat",))
    _read_allocation(kwargs, keys["prun_algo"], keys["prun_algo_tuning"])
    _read_exclusions(kwargs, keys, exclude)
    _read_total(kwargs, keys["total_iters"], total_iters)
    shape = keys["default_input_shape"]
    if shape in (None, "None"):
        kwargs.no_effect("default_input_shape", "absent: the first validation image gives the shape")
    else:
        kwargs.send("default_input_shape", shape, "sparsity.input_shape")
    kwargs.send("do_sparse_analysis", keys["do_sparse_analysis"], "write_analysis")
    for key, place in (("output_dir", "analysis/"), ("save_dir", "one folder for each level")):
        kwargs.mapped(key, f"{place} inside the run folder, instead of {keys[key]!r}")
    for key, reason in REFUSED_UNLESS_EMPTY.items():
        if keys[key] not in (None, "", "None"):
            raise kwargs.error(key, "nothing", quote(kwargs.data[key]), f"Refused: {reason}.")
        kwargs.no_effect(key, "it is empty")


def _read_base(kwargs: Section, keys: dict[str, Any], exclude: Exclude, total_iters: str) -> None:
    for target, native in (
        ("sparsity.scope", "all"),
        ("sparsity.compensate", False),
        ("sparsity.allocation.type", "uniform"),
        ("sparsity.schedule.sparsity", 0.0),
        ("sparsity.targets.include_frozen", True),
    ):
        kwargs.translation.set(target, native, kwargs.path)
    _read_exclusions(kwargs, keys, exclude)


def _read_allocation(kwargs: Section, algorithm: Any, tuning: float) -> None:
    if algorithm == 0:
        kwargs.send("prun_algo", "uniform", "sparsity.allocation.type")
        kwargs.send("prun_algo", False, "sparsity.compensate")
        kwargs.mapped("prun_algo", NOT_COMPENSATED)
        kwargs.no_effect("prun_algo_tuning", "only prun_algo 1 reads it")
    elif algorithm == 1:
        kwargs.send("prun_algo", "energy", "sparsity.allocation.type")
        kwargs.mapped("prun_algo", BETTER_RULE)
        kwargs.send("prun_algo_tuning", tuning, "sparsity.allocation.tuning")
    else:
        raise kwargs.error("prun_algo", "0 or 1", quote(algorithm), "0 is uniform, 1 is energy.")


def _read_exclusions(kwargs: Section, keys: dict[str, Any], exclude: Exclude) -> None:
    patterns = exclude(_words(keys["no_prune_keyword"]), _words(keys["no_prune_layer"]), kwargs)
    if keys.get("dw_no_prune"):
        patterns = [*patterns, "preset:grouped"]
        kwargs.mapped(
            "dw_no_prune", "sparsity.targets.exclude: preset:grouped (every convolution in groups, as in MSBench)"
        )
    else:
        kwargs.no_effect("dw_no_prune", "false is what is done")
    kwargs.translation.set("sparsity.targets.exclude", patterns, kwargs.path)


def _read_total(kwargs: Section, total: Any, target: str) -> None:
    if total in (None, "None"):
        kwargs.no_effect("total_iters", "None: the run's own steps are used")
    elif isinstance(total, bool) or not isinstance(total, int):
        raise kwargs.error("total_iters", "a number of steps or None", quote(total), "Correct it.")
    elif target:
        kwargs.send("total_iters", total, target)
    else:
        kwargs.no_effect("total_iters", "UP puts the run's own steps in its place")


def _read_ampere(kwargs: Section, keys: dict[str, Any]) -> None:
    calculator = keys["mask_calculator"]
    if calculator not in CALCULATORS:
        raise kwargs.error(
            "mask_calculator",
            f"one of {sorted(CALCULATORS)}",
            quote(calculator),
            "Other calculators are not supported.",
        )
    pattern = dict(CALCULATORS[calculator])
    if not keys["allow_permutation"]:
        kwargs.no_effect("allow_permutation", "false is what is done")
    elif pattern["type"] != "n_m":
        raise kwargs.error(
            "allow_permutation", f"false with {calculator}", "true", "Channels are permuted for m4n2_1d only."
        )
    else:
        pattern["permute"] = True
        kwargs.mapped("allow_permutation", PERMUTED)
    kwargs.send("mask_calculator", pattern, "sparsity.pattern")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
