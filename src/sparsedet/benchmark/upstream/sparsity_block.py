"""The ``sparsity:`` block of MSBench and United-Perception, accepted as it was published.

Meaning of each key: MSBench's schedulers at commit b006320 and its published benchmark page. The rule of
``prun_algo: 1`` is a vendor's secret; it becomes the open `energy` allocation, with ``prun_algo_tuning`` as its
tuning. Masks are fixed within a level here, where MSBench recomputes them at every forward pass.
"""

import re
from collections.abc import Callable
from typing import Any

from sparsedet.benchmark.upstream.note import Note
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError, did_you_mean

BETTER_RULE = (
    "the open energy rule stands in for the vendor's closed one; allocation {type: lamp} keeps more AP at high sparsity"
)
EXACT = "counts are exact here, there is nothing to tolerate"
GENERATORS = {"mask_generator": ["NormalMaskGenerator"], "fake_sparse": ["FakeSparse", "DefaultFakeSparse"]}
TOLERANCES = ("sparse_rate_tolerance", "prune_tolerance_max", "prune_tolerance_min")


def translate_document(document: Document) -> tuple[Note, ...]:
    """Replace MSBench's block in a recipe document by the native one; it is known by its scheduler or mask generator.

    Returns:
        one note for each key of the block; none for a native recipe.

    Raises:
        ConfigError: a key is unknown, or asks for what is refused; the message names the key and the reason.
    """
    if isinstance(document.data.get("net"), list):
        raise ConfigError(
            f"{document.position(('net',))}: net: expected a native recipe, got a whole United-Perception file. "
            "Its sparsity: block is accepted in a native recipe; the network and data parts are not translated yet."
        )
    block = document.data.get("sparsity")
    if not isinstance(block, dict) or not {"scheduler", "mask_generator"} & set(block):
        return ()
    translator = _Translator(document)
    document.data["sparsity"] = translator.translate(block)
    if "leaf_module" in document.data:
        del document.data["leaf_module"]
        translator.no_effect("leaf_module", "nothing is traced here", prefix="")
    return tuple(translator.notes)


class _Translator:
    """Turns one block into native keys and takes notes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.notes: list[Note] = []

    def translate(self, block: dict[str, Any]) -> dict[str, Any]:
        self._check_generators(block)
        scheduler = block.get("scheduler")
        if not isinstance(scheduler, dict) or "type" not in scheduler:
            raise self._refusal("scheduler", "a mapping with the key 'type'", scheduler, "Add the scheduler.")
        builders: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "AmbaLevelPruneScheduler": self._level_wise,
            "AmpereScheduler": self._ampere,
        }
        name = scheduler["type"]
        if name not in builders:
            hint = did_you_mean(str(name), builders)
            raise self._refusal(
                "scheduler.type",
                f"one of {sorted(builders)}",
                name,
                f"{hint} Other schedulers are not supported.".strip(),
            )
        kwargs = dict(scheduler.get("kwargs") or {})
        native = builders[name](kwargs)
        for key in kwargs:
            raise self._refusal(f"scheduler.kwargs.{key}", f"a key of {name}", key, "Correct or remove it.")
        return native

    # --- the two schedulers --------------------------------------------------------------------------------

    def _level_wise(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        native: dict[str, Any] = {"scope": "all", "targets": {"include_frozen": True}}
        levels = [self._fraction(value) for value in kwargs.pop("sparsity_table", [30, 40, 50, 60, 70, 80, 90])]
        native["schedule"] = {"type": "level_wise", "levels": levels}
        self.mapped("scheduler.kwargs.sparsity_table", f"sparsity.schedule.levels: {levels}")
        native["allocation"] = self._allocation(kwargs)
        native["targets"]["exclude"] = self._exclusions(kwargs)
        self._input_shape(kwargs, native)
        self._total_iters(kwargs)
        self._analysis(kwargs)
        self._refuse_unless_empty(
            kwargs,
            "prun_hw_aware",
            "per-layer limits of one chip are the vendor's; give 'targets.exclude' instead",
        )
        self._refuse_unless_empty(
            kwargs, "mask_dict", "masks are read from sparsedet checkpoints: set initial_checkpoint"
        )
        for key, reason in {
            **dict.fromkeys(TOLERANCES, EXACT),
            "default_input_custom": "the run's own images give the input",
            "lr_scheduler": "training.lr_schedule starts again at each level",
            "init_lr": "training.lr_schedule starts again at each level",
            "verbose": "the table of each level is always written",
        }.items():
            if key in kwargs:
                kwargs.pop(key)
                self.no_effect(f"scheduler.kwargs.{key}", reason)
        return native

    def _ampere(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        calculator = kwargs.pop("mask_calculator", "m4n2_1d")
        if calculator != "m4n2_1d":
            raise self._refusal(
                "scheduler.kwargs.mask_calculator",
                "'m4n2_1d'",
                calculator,
                "Two-dimensional 2:4 masks are not supported.",
            )
        self.mapped("scheduler.kwargs.mask_calculator", "sparsity.pattern: {type: n_m, n: 2, m: 4, eligibility: asp}")
        for key in ("allow_recompute_mask", "allow_permutation"):
            if kwargs.pop(key, False):
                raise self._refusal(
                    f"scheduler.kwargs.{key}",
                    "False",
                    True,
                    "Masks are made once and channels stay in place; set it to False.",
                )
            self.no_effect(f"scheduler.kwargs.{key}", "False is what is done")
        if "verbosity" in kwargs:
            kwargs.pop("verbosity")
            self.no_effect("scheduler.kwargs.verbosity", "the list of skipped layers is always written")
        if "whitelist" in kwargs:
            raise self._refusal(
                "scheduler.kwargs.whitelist",
                "no class list",
                kwargs["whitelist"],
                "Use sparsity.targets.include.",
            )
        return {
            "pattern": {"type": "n_m", "n": 2, "m": 4, "eligibility": "asp"},
            "schedule": {"type": "one_shot"},
        }

    # --- single keys ---------------------------------------------------------------------------------------

    def _check_generators(self, block: dict[str, Any]) -> None:
        known = {"scheduler", "leaf_module", "fuse_bn", *GENERATORS}
        for key in set(block) - known:
            advice = f"{did_you_mean(key, known)} Correct or remove it.".strip()
            raise self._refusal(key, f"one of {sorted(known)}", key, advice)
        is_ampere = (block.get("scheduler") or {}).get("type") == "AmpereScheduler"
        for key in GENERATORS.keys() & block:
            if is_ampere:
                self.no_effect(key, "AmpereScheduler never read it")
            else:
                self._check_generator(key, block[key] or {})
        if "leaf_module" in block:
            self.no_effect("leaf_module", "nothing is traced here")
        if block.get("fuse_bn"):
            raise self._refusal("fuse_bn", "False", block["fuse_bn"], "Batch norms stay; fold them at export.")
        if "fuse_bn" in block:
            self.no_effect("fuse_bn", "False is what is done")

    def _check_generator(self, key: str, generator: dict[str, Any]) -> None:
        kind, kwargs = generator.get("type"), generator.get("kwargs") or {}
        if kind not in GENERATORS[key]:
            raise self._refusal(f"{key}.type", f"one of {GENERATORS[key]}", kind, "Other kinds are not supported.")
        if any(kwargs.values()):
            raise self._refusal(f"{key}.kwargs", "no options, or all of them off", kwargs, "Remove them.")
        self.mapped(key, "unstructured magnitude masks, fixed within a level")

    def _fraction(self, percent: Any) -> float:
        if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent < 100:
            raise self._refusal(
                "scheduler.kwargs.sparsity_table", "percentages in [0, 100)", percent, "Correct the table."
            )
        return float(percent) / 100

    def _allocation(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        algorithm = kwargs.pop("prun_algo", 1)
        tuning = kwargs.pop("prun_algo_tuning", 0.5)
        if algorithm == 0:
            self.mapped("scheduler.kwargs.prun_algo", "sparsity.allocation: {type: uniform}")
            self.no_effect("scheduler.kwargs.prun_algo_tuning", "only prun_algo 1 reads it")
            return {"type": "uniform"}
        if algorithm != 1:
            raise self._refusal("scheduler.kwargs.prun_algo", "0 or 1", algorithm, "0 is uniform, 1 is energy.")
        self.mapped("scheduler.kwargs.prun_algo", f"sparsity.allocation: {{type: energy}}; {BETTER_RULE}")
        self.mapped("scheduler.kwargs.prun_algo_tuning", f"sparsity.allocation.tuning: {tuning}")
        return {"type": "energy", "tuning": tuning}

    def _exclusions(self, kwargs: dict[str, Any]) -> list[str]:
        keywords = self._words(kwargs.pop("no_prune_keyword", ""))
        names = self._words(kwargs.pop("no_prune_layer", ""))
        patterns = [f"re:.*{re.escape(word)}.*" for word in keywords] + names
        self.mapped(
            "scheduler.kwargs.no_prune_keyword",
            f"sparsity.targets.exclude: {keywords or 'nothing'} (in any part of the name)",
        )
        self.mapped("scheduler.kwargs.no_prune_layer", f"sparsity.targets.exclude: {names or 'nothing'} (exact)")
        if kwargs.pop("dw_no_prune", False):
            patterns.append("preset:depthwise")
            self.mapped("scheduler.kwargs.dw_no_prune", "sparsity.targets.exclude: preset:depthwise")
        else:
            self.no_effect("scheduler.kwargs.dw_no_prune", "False is what is done")
        return patterns

    def _input_shape(self, kwargs: dict[str, Any], native: dict[str, Any]) -> None:
        shape = kwargs.pop("default_input_shape", None)
        if shape in (None, "None"):
            self.no_effect("scheduler.kwargs.default_input_shape", "absent: the first validation image gives the shape")
            return
        native["input_shape"] = shape
        self.mapped("scheduler.kwargs.default_input_shape", f"sparsity.input_shape: {shape}")

    def _total_iters(self, kwargs: dict[str, Any]) -> None:
        total = kwargs.pop("total_iters", None)
        if total in (None, "None"):
            self.no_effect("scheduler.kwargs.total_iters", "None: the run's own steps are used")
        elif isinstance(total, bool) or not isinstance(total, int):
            raise self._refusal("scheduler.kwargs.total_iters", "a number of steps or None", total, "Correct it.")
        else:
            self.document.data["expected_steps"] = total
            self.mapped("scheduler.kwargs.total_iters", f"expected_steps: {total}")

    def _analysis(self, kwargs: dict[str, Any]) -> None:
        analyse = kwargs.pop("do_sparse_analysis", False)
        self.document.data["write_analysis"] = bool(analyse)
        self.mapped("scheduler.kwargs.do_sparse_analysis", f"write_analysis: {bool(analyse)}".lower())
        for key, place in (("output_dir", "analysis/"), ("save_dir", "one folder for each level")):
            if key in kwargs:
                value = kwargs.pop(key)
                self.mapped(f"scheduler.kwargs.{key}", f"{place} inside the run folder, instead of {value!r}")

    # --- notes and errors ----------------------------------------------------------------------------------

    def mapped(self, key: str, text: str) -> None:
        self.notes.append(Note(f"sparsity.{key}", "mapped", text))

    def no_effect(self, key: str, reason: str, prefix: str = "sparsity.") -> None:
        self.notes.append(Note(f"{prefix}{key}", "no effect", reason))

    def _words(self, text: Any) -> list[str]:
        return [word.strip() for word in str(text or "").split(",") if word.strip()]

    def _refuse_unless_empty(self, kwargs: dict[str, Any], key: str, reason: str) -> None:
        value = kwargs.pop(key, None)
        if value not in (None, "", "None"):
            raise self._refusal(f"scheduler.kwargs.{key}", "nothing", value, f"Refused: {reason}.")

    def _refusal(self, key: str, expected: str, got: Any, advice: str) -> ConfigError:
        path = ("sparsity", *key.split("."))
        return ConfigError(
            f"{self.document.position(path)}: sparsity.{key}: expected {expected}, got {got!r}. {advice}"
        )
