"""The ``sparsity:`` block: defaults, combinations that are refused, and reading from YAML."""

import re
from pathlib import Path

import pytest

from sparsedet.common.config import dump, validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import (
    NM,
    Energy,
    Lamp,
    LevelWise,
    Limit,
    Magnitude,
    OneShot,
    SparsityConfig,
    Targets,
    Unstructured,
)

HALF = OneShot(sparsity=0.5)
HALF_YAML = "schedule: {type: one_shot, sparsity: 0.5}"


def read(text):
    return validate(SparsityConfig, parse_yaml(text, "recipe.yaml", Path()))


def test_defaults():
    config = SparsityConfig(schedule=HALF)
    assert config.targets == Targets(include=("*",), exclude=(), include_frozen=False)
    assert config.criterion == Magnitude()
    assert config.pattern == Unstructured()
    assert config.allocation == Lamp()
    assert (config.scope, config.budget, config.compensate, config.limits) == ("all", "weights", True, {})
    assert config.input_shape is None
    assert SparsityConfig(schedule=OneShot(), pattern=NM()).allocation is None


def test_yaml():
    config = read("""
targets: {exclude: [backbone.conv1, "head.*_pred"]}
allocation: {type: energy, tuning: 1.5}
schedule: {type: level_wise, levels: [0.3, 0.9], shares: [1, 2]}
scope: chosen
budget: macs
limits: {"head.*": {max: 0.8}, "preset:stem": {fixed: 0}}
input_shape: [1, 3, 64, 64]
""")
    assert config == SparsityConfig(
        targets=Targets(exclude=("backbone.conv1", "head.*_pred")),
        allocation=Energy(tuning=1.5),
        schedule=LevelWise(levels=(0.3, 0.9), shares=(1, 2)),
        scope="chosen",
        budget="macs",
        limits={"head.*": Limit(max=0.8), "preset:stem": Limit(fixed=0)},
        input_shape=(1, 3, 64, 64),
    )


@pytest.mark.parametrize(
    "config",
    [
        SparsityConfig(schedule=LevelWise(levels=(0.3, 0.9), shares=(1, 2)), allocation=Energy()),
        SparsityConfig(
            schedule=HALF, compensate=False, budget="macs", limits={"a": Limit(min=0.1), "b": Limit(fixed=1)}
        ),
        SparsityConfig(schedule=OneShot(), pattern=NM(n=1)),
        SparsityConfig(schedule=LevelWise(levels=(0.5,)), pattern=NM()),
    ],
)
def test_the_resolved_block_reads_back_equal(config):
    assert SparsityConfig.model_validate(dump(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "schedule: {type: one_shot}",
            "recipe.yaml: top level: schedule.sparsity: expected a number in [0, 1) with the pattern "
            "unstructured, got null. Write for example sparsity: 0.8.",
        ),
        (
            "schedule: {type: one_shot, sparsity: 0.6}\npattern: {type: n_m}",
            "schedule: expected the sparsity 0.5 that the pattern 2:4 gives, got [0.6]. "
            "Correct it, or use the pattern type 'unstructured'.",
        ),
        ("schedule: {type: level_wise, levels: [0.5, 0.75]}\npattern: {type: n_m}", "got [0.5, 0.75]"),
        (
            "schedule: {type: one_shot}\npattern: {type: n_m}\nallocation: {type: lamp}",
            "allocation: expected null with the pattern 2:4, which gives every tensor the same share, "
            "got 'lamp'. Remove the key.",
        ),
        (
            "schedule: {type: one_shot}\npattern: {type: n_m}\nbudget: macs",
            "budget: expected 'weights' with the pattern 2:4, which gives every tensor the same share, got 'macs'.",
        ),
        (
            "schedule: {type: one_shot}\npattern: {type: n_m}\ncompensate: false",
            "compensate: expected True with the pattern 2:4, which gives every tensor the same share, got False.",
        ),
        (
            "schedule: {type: one_shot}\npattern: {type: n_m}\nlimits: {fc: {max: 0.5}}",
            "limits: expected {} with the pattern 2:4, which gives every tensor the same share, got",
        ),
        (
            f"{HALF_YAML}\nscope: chosen\ncompensate: false",
            "compensate: expected true with scope 'chosen', where nothing is made up for, got false. Remove one",
        ),
        (f"{HALF_YAML}\nallocation: {{type: sensitivity}}", "allocation.curves: expected a value, got nothing"),
        (f"{HALF_YAML}\nbudget: flops", "budget: expected 'weights' or 'macs', got 'flops'"),
        (
            f"{HALF_YAML}\nallocation: null",
            "allocation: expected a rule with the pattern unstructured, got null. Write type: lamp.",
        ),
        (
            f"{HALF_YAML}\nallocation: {{type: lmap}}",
            "allocation.type: expected one of ['energy', 'erk', 'global', 'lamp', 'sensitivity', 'uniform'], "
            "got 'lmap'. Did you mean 'lamp'?",
        ),
        (
            "schedule: {type: level_wise, levels: [0.5, 0.3]}",
            "recipe.yaml:1: schedule.levels: expected levels that rise, got [0.5, 0.3]. Sort them, each once.",
        ),
        ("schedule: {type: level_wise, levels: [30]}", "schedule.levels[0]: expected less than 1, got 30"),
        ("schedule: {type: one_shot, sparsity: 1.0}", "schedule.sparsity: expected less than 1, got 1.0"),
        ("schedule: {type: one_shot, sparsity: half}", "schedule.sparsity: expected a valid number, got"),
        ("pattern: {type: n_m}", "schedule: expected a value, got nothing"),
        (
            f"{HALF_YAML}\nallocations: {{type: lamp}}",
            "got the unknown key 'allocations'. Did you mean 'allocation'?",
        ),
        (
            f"{HALF_YAML}\ntargets: {{include: ['re:(']}}",
            "targets.include[0]: expected a regular expression after 're:', got 're:('",
        ),
        (
            f"{HALF_YAML}\ncriterion: {{type: gradients}}",
            "criterion.type: expected one of ['activation', 'gradient', 'magnitude', 'obc', 'random'], "
            "got 'gradients'. Did you mean 'gradient'?",
        ),
        (
            f"{HALF_YAML}\ncriterion: {{type: random, num_batches: 4}}",
            "criterion.num_batches: expected one of ['seed', 'type'], got the unknown key 'num_batches'",
        ),
        (f"{HALF_YAML}\ncriterion: {{type: obc, damping: 0}}", "criterion.damping: expected greater than 0, got 0"),
        (
            "schedule: {type: level_wise, levels: [0.3, 0.9]}\ncriterion: {type: obc}\nkeep_pruned_values: true",
            "keep_pruned_values: expected false with the criterion 'obc', which changes the weights that stay",
        ),
    ],
)
def test_bad_blocks_are_refused(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(text)


def test_a_wrong_pattern_is_one_fault_not_two():
    with pytest.raises(ConfigError) as error:
        read("schedule: {type: one_shot}\npattern: {type: n_m, n: 4, m: 2}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "update", "interval"),
    [
        ("schedule: {type: one_shot, sparsity: 0.5}", "once", None),
        ("schedule: {type: level_wise, levels: [0.5]}", "once", None),
        ("schedule: {type: level_wise, levels: [0.3, 0.5]}", "per_level", None),
        ("schedule: {type: one_shot, sparsity: 0.5}\nmask_update: per_level", "per_level", None),
        ("schedule: {type: cubic, sparsity: 0.5}", "every_k_steps", 100),
        ("schedule: {type: dynamic, sparsity: 0.5}\nupdate_interval: 7", "every_k_steps", 7),
        (
            "schedule: {type: level_wise, levels: [0.3, 0.5]}\nmask_update: every_k_steps\nkeep_pruned_values: true",
            "every_k_steps",
            100,
        ),
        ("schedule: {type: level_wise, levels: [0.3, 0.5]}\nkeep_pruned_values: true", "per_level", None),
        (
            "schedule: {type: one_shot}\npattern: {type: n_m}\nmask_update: every_k_steps\nkeep_pruned_values: true",
            "every_k_steps",
            100,
        ),
        ("schedule: {type: cubic, sparsity: 0.5}\npattern: {type: channel}", "every_k_steps", 100),
        ("schedule: {type: dynamic, sparsity: 0.5}\npattern: {type: block, shape: [2, 1]}", "every_k_steps", 100),
    ],
)
def test_masks_are_updated_as_the_schedule_says(text, update, interval):
    config = read(text)
    assert (config.mask_update, config.update_interval) == (update, interval)
    assert SparsityConfig.model_validate(dump(config)) == config


EVERY = "mask_update: every_k_steps"
SOFT = "keep_pruned_values: true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"schedule: {{type: one_shot, sparsity: 0.5}}\n{EVERY}",
            "mask_update: expected 'once' or 'per_level' where pruned weights stay zero, since a new mask would be the "
            "old one, got 'every_k_steps'. Set keep_pruned_values: true, or use the schedule dynamic.",
        ),
        (
            "schedule: {type: level_wise, levels: [0.3, 0.5]}\nmask_update: once",
            "mask_update: expected 'per_level' with 2 levels, got 'once'.",
        ),
        (
            "schedule: {type: cubic, sparsity: 0.5}\nmask_update: per_level",
            "mask_update: expected 'every_k_steps' with the schedule 'cubic', which changes masks in its level, got "
            "'per_level'. Remove the key.",
        ),
        (
            "schedule: {type: one_shot, sparsity: 0.5}\nupdate_interval: 10",
            "update_interval: expected a number of steps with mask_update 'every_k_steps', otherwise null, got 10 with "
            "'once'.",
        ),
        (
            "schedule: {type: cubic, sparsity: 0.5}\nupdate_interval: null",
            "update_interval: expected a number of steps with mask_update 'every_k_steps', otherwise null, got None",
        ),
        (
            "schedule: {type: cubic, sparsity: 0.5}\nupdate_interval: 0",
            "update_interval: expected greater than or equal",
        ),
        (
            f"schedule: {{type: one_shot, sparsity: 0.5}}\n{SOFT}",
            "keep_pruned_values: expected false where masks are made",
        ),
        (
            f"schedule: {{type: dynamic, sparsity: 0.5}}\n{SOFT}",
            "keep_pruned_values: expected false with keep_zeros and",
        ),
        (
            f"schedule: {{type: one_shot, sparsity: 0.5}}\n{EVERY}\n{SOFT}\nkeep_zeros: true",
            "keep_pruned_values: expected false with keep_zeros and",
        ),
        (
            f"schedule: {{type: one_shot, sparsity: 0.5}}\n{EVERY}\n{SOFT}\npattern: {{type: channel}}",
            "keep_pruned_values: expected pruned weights that stay so with the pattern channel",
        ),
        (
            "schedule: {type: dynamic, sparsity: 0.5}\npattern: {type: channel}",
            "schedule: expected pruned weights that stay so with the pattern channel",
        ),
        (
            "schedule: {type: cubic, sparsity: 0.5}\npattern: {type: n_m}",
            "schedule: expected one_shot or level_wise with the pattern 2:4, which leaves no other sparsity and no "
            "place to grow, got 'cubic'.",
        ),
        ("schedule: {type: dynamic, sparsity: 0.5}\npattern: {type: n_m_2d}", "expected one_shot or level_wise with"),
    ],
)
def test_updates_that_cannot_be_are_refused_with_the_reason(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(text)
