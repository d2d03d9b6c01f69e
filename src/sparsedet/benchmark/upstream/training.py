"""How United-Perception trains: ``trainer:``, ``ema:``, ``hooks:``, ``saver:``, ``runtime:``.

Meaning and defaults of every key: up_semantics §1, §9.
"""

import re
from pathlib import Path
from typing import Any

from sparsedet.benchmark.upstream.section import Key, Section, Type, fixed, ignored, part, quote, to, value

AT_THE_END = "each level is evaluated and saved at its end"
SAVED = "a level's checkpoint is saved at its end"
RUN_FOLDER = "what a run writes is in its own folder"
ONE_GROUP = "all weights are one group"
TRAINER: dict[str, Key] = {
    "max_epoch": to("training.epochs", "a number"),
    "optimizer": part(),
    "lr_scheduler": part(),
    "test_freq": ignored(AT_THE_END),
    "test_start": ignored(AT_THE_END),
    "save_freq": ignored(SAVED),
    "save_start": ignored(SAVED),
    "only_save_latest": ignored(SAVED),
    "save_latest_freq": ignored(SAVED),
}
BESIDE_OPTIMIZER: dict[str, Key] = {
    "register_type": fixed("base", ONE_GROUP),
    "special_param_group": fixed([], ONE_GROUP),
    "pconfig": fixed(None, ONE_GROUP),
}
SGD: dict[str, Key] = {
    "lr": to("training.optimizer.lr", "a number"),
    "momentum": to("training.optimizer.momentum", "a number", 0.0),
    "weight_decay": to("training.optimizer.weight_decay", "a number", 0.0),
    "nesterov": to("training.optimizer.nesterov", "true or false", False),
    "dampening": fixed(0, "the momentum is not dampened"),
}
ADAMW: dict[str, Key] = {
    "lr": to("training.optimizer.lr", "a number"),
    "weight_decay": to("training.optimizer.weight_decay", "a number", 0.01),
    "betas": to("training.optimizer.betas", "a list of numbers", [0.9, 0.999]),
    "eps": fixed(1e-8, "torch's own is used"),
    "amsgrad": fixed(False, "torch's own is used"),
}
AT = "training.lr_schedule"
WARMUP_SHAPES = {"exp": "exponential", "linear": "linear"}
BESIDE_SCHEDULE: dict[str, Key] = {
    "warmup_epochs": to(f"{AT}.warmup_epochs", "a number", 0),
    "warmup_iter": to(f"{AT}.warmup_steps", "a whole number", 0),
    "warmup_ratio": value("a number", None),
    "warmup_type": value("text", "exp"),
    "warmup_register_type": fixed("base", "the rate is for one image"),
    "lr_register_type": fixed("base", "one schedule is followed"),
}
SCHEDULES = {
    "MultiStepLR": Type(
        {
            "milestones": to(f"{AT}.milestones", "a list of numbers"),
            "gamma": to(f"{AT}.gamma", "a number", 0.1),
        },
        f"{AT}.type",
        "multi_step",
    ),
    "CosineAnnealingLR": Type(
        {
            "T_max": to(f"{AT}.epochs", "a number"),
            "eta_min": to(f"{AT}.final_lr", "a number", 0.0),
        },
        f"{AT}.type",
        "cosine",
    ),
}
EMA: dict[str, Key] = {
    "enable": value("true or false"),
    "ema_type": value("text", "linear"),
    "kwargs": part({}),
}
SAVER: dict[str, Key] = {
    "pretrain_model": value("text", None),
    "resume_model": fixed(
        None, "runs of UP are not continued; name the file as pretrain_model to start from its weights"
    ),
    "auto_resume": ignored("a run that was interrupted goes on in its own folder"),
    "save_dir": ignored(RUN_FOLDER),
    "results_dir": ignored(RUN_FOLDER),
    "save_result": ignored("detections of each level are always saved"),
    "only_save_latest": ignored(SAVED),
    "save_latest_freq": ignored(SAVED),
    "task_type": ignored("detectors are trained"),
    "gather_group": ignored("it changes no result"),
    "memory_friendly": ignored("it changes no result"),
}
CLIPPING: dict[str, Key] = {
    "mode": fixed("pre_defined", "the norm is a fixed one"),
    "max_norm": to("training.max_gradient_norm", "a number"),
    "norm_type": fixed(2, "the norm is the Euclidean one"),
    "momentum": ignored("only UP's moving average reads it"),
    "tolerance": ignored("only UP's averages read it"),
    "display_freq": ignored("the norm is in metrics.jsonl"),
}
HOOKS = {
    "auto_checkpoint": Type(reason="an interrupted run goes on from its last finished level"),
    "auto_save_best": Type(reason="each level is saved at its end; training.checkpoints.keep_best keeps the best, too"),
    "train_val_logger": Type(
        dict.fromkeys(("freq", "logdir", "skip_first_k", "summary_writer"), ignored("metrics.jsonl is always written")),
        reason="metrics.jsonl is always written",
    ),
    "grad_clipper": Type(CLIPPING, "training.max_gradient_norm"),
}
RUNTIME: dict[str, Key] = {
    "random_seed": to("seed", "a whole number", 131),
    "rank_init": ignored("every sample is seeded by its own index, on any number of devices"),
    "task_names": ignored("UP reads it for its log only"),
    "aligned": fixed(False, "boxes reach to the far side of their last pixel; see detector.legacy_boxes"),
    "iter_base": fixed(False, "lengths are counted in epochs"),
    "device": ignored("--device chooses"),
    "async_norm": fixed(False, "statistics of several processes are not averaged before an evaluation"),
    "special_bn_init": fixed(False, "batch norms start as torch starts them"),
    "fp16": value("anything", False),
    "model_helper": part({}),
    "runner": part({}),
}
FP16 = {
    "keep_batchnorm_fp32": ignored("autocast keeps batch norms in fp32"),
    "scale_factor": ignored("the scale of the loss adapts itself"),
}
HELPERS = dict.fromkeys(("base", "sparse"), Type(reason="the network is built from its parts"))
CLASSIFIER_FILE = re.compile(r"resnet\d+-[0-9a-f]{8}\.pth")


def read_trainer(trainer: Section) -> None:
    """Translate ``trainer:``.

    Raises:
        ConfigError: a key is wrong or refused, here and in the functions below.
    """
    translation = trainer.translation
    keys = trainer.read(TRAINER)
    types = {
        "SGD": Type(SGD, "training.optimizer.type", "sgd"),
        "AdamW": Type(ADAMW, "training.optimizer.type", "adamw"),
    }
    keys["optimizer"].choose(types, BESIDE_OPTIMIZER)
    translation.set("training.lr_batch_size", 1, (*trainer.path, "optimizer"))
    translation.set("training.max_gradient_norm", None, trainer.path)
    translation.set(f"{AT}.warmup", 0, (*trainer.path, "lr_scheduler"))
    schedule = keys["lr_scheduler"].choose(SCHEDULES, BESIDE_SCHEDULE)
    _read_warmup(keys["lr_scheduler"], schedule.beside)
    if schedule.name == "MultiStepLR":
        translation.set(f"{AT}.unit", "epoch", schedule.kwargs.path)
    elif translation.up_compat:
        translation.set(f"{AT}.up_compat", True, ("up_compat",))


def _read_warmup(section: Section, keys: dict[str, Any]) -> None:
    ratio, shape = keys["warmup_ratio"], keys["warmup_type"]
    if shape not in WARMUP_SHAPES:
        raise section.error("warmup_type", f"one of {sorted(WARMUP_SHAPES)}", quote(shape), "Correct it.")
    is_unscaled = ratio is None or ratio < 0
    section.send("warmup_ratio", "unscaled" if is_unscaled else ratio, f"{AT}.warmup_start")
    section.send("warmup_type", WARMUP_SHAPES[shape], f"{AT}.warmup_shape")
    if not keys["warmup_epochs"] and not keys["warmup_iter"]:
        for key in ("warmup_epochs", "warmup_iter"):
            section.mapped(key, "without a warm-up UP multiplies the rate by the batch directly, as lr_batch_size does")


def read_ema(ema: Section | None, is_sparse: bool) -> None:
    """Translate ``ema:``; runs that prune have none in United-Perception."""
    if ema is None:
        return
    keys = ema.read(EMA)
    reason = "UP switches it off in runs that prune" if is_sparse else "it is not enabled"
    if is_sparse or not keys["enable"]:
        for key in ema.data:
            ema.no_effect(key, reason)
        return
    at = "training.ema"
    ema.mapped("enable", at)
    shape = keys["ema_type"]
    if shape not in WARMUP_SHAPES:
        raise ema.error("ema_type", f"one of {sorted(WARMUP_SHAPES)}", quote(shape), "Correct it.")
    ema.send("ema_type", WARMUP_SHAPES[shape], f"{at}.ramp")
    steps = (
        ignored("UP's exponential ramp has 2000 steps")
        if shape == "exp"
        else to(f"{at}.ramp_steps", "a whole number", 1)
    )
    if shape == "exp":
        ema.translation.set(f"{at}.ramp_steps", 2000, (*ema.path, "ema_type"))
    keys["kwargs"].read(
        {
            "decay": to(f"{at}.decay", "a number"),
            "inner_T": fixed(1, "the average is updated after every step"),
            "warmup": steps,
        }
    )


def read_hooks(hooks: Section) -> None:
    """Translate ``hooks:``, a mapping by their types."""
    for name, hook in hooks.data.items():
        Section(hooks.translation, (*hooks.path, name), hook).choose(HOOKS)


def read_saver(saver: Section, backbone: str) -> None:
    """Translate ``saver:``; `backbone` is its native type."""
    path = saver.read(SAVER)["pretrain_model"]
    if not path:
        saver.no_effect("pretrain_model", "it is empty")
        return
    if CLASSIFIER_FILE.fullmatch(Path(path).name):
        saver.send("pretrain_model", path, "detector.backbone.weights")
        advice = "without the file use --set detector.backbone.weights=IMAGENET1K_V1, torchvision's of today"
        saver.mapped("pretrain_model", f"torchvision's weights of {backbone}; {advice}")
        return
    saver.send("pretrain_model", path, "initial_checkpoint")
    if not Path(path).suffix:
        saver.mapped("pretrain_model", "this is no file name: give the checkpoint with --set initial_checkpoint=PATH")


def read_runtime(runtime: Section, has_sparsity: bool) -> None:
    """Translate ``runtime:``."""
    keys = runtime.read(RUNTIME)
    if isinstance(keys["fp16"], Section):
        keys["fp16"].read(FP16)
    runtime.send("fp16", "fp16" if runtime.data.get("fp16") else "fp32", "training.precision")
    helper = keys["model_helper"]
    if helper.data:
        helper.choose(HELPERS)
    runner = keys["runner"].data.get("type", "base")
    if runner == "sparse" and not has_sparsity:
        raise runtime.error(
            "runner", "a sparsity section beside the runner 'sparse'", "none", "Add sparsity, or use base."
        )
    ignoring = "its base runner would not" if has_sparsity and runner == "base" else "as in UP"
    reason = f"the sparsity section decides what is pruned, {ignoring}" if has_sparsity else "nothing is pruned"
    if keys["runner"].data:
        keys["runner"].choose(dict.fromkeys(("base", "sparse"), Type(reason=reason)))
