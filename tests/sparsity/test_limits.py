"""Limits of single weights against hand-worked counts, and limits read from files."""

import re

import pytest

from sparsedet.common.config import dump, validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError, UnreachableTargetError
from sparsedet.sparsity import Limit, OneShot, SparsityConfig

HALF = OneShot(sparsity=0.5)


@pytest.mark.parametrize(
    ("fields", "numel", "expected"),
    [
        ({"min": 0.25}, 10, (3, 9)),  # 2.5 rounded up; 99 % of 10 rounded down
        ({"min": 0.07}, 100, (7, 99)),  # 0.07 * 100 is 7.000000000000001 in floats
        ({"max": 0.25}, 10, (0, 2)),
        ({"max": 0.29}, 100, (0, 29)),  # 28.999999999999996 in floats
        ({"min": 0.2, "max": 0.8}, 10, (2, 8)),
        ({"min": 0.5, "max": 0.5}, 10, (5, 5)),
        ({"fixed": 0.25}, 10, (2, 2)),  # 2.5: half to even
        ({"fixed": 0.35}, 10, (4, 4)),
        ({"fixed": 0}, 10, (0, 0)),
        ({"fixed": 0.999}, 10, (9, 9)),  # one stays unless all were asked for
        ({"max": 0.999}, 1000, (0, 999)),  # more than 99 %: asked for
        ({"max": 0.9999}, 1000, (0, 999)),
        ({"max": 1}, 10, (0, 10)),
        ({"fixed": 1}, 10, (10, 10)),
        ({"fixed": 1}, 1, (1, 1)),
        ({"fixed": 0.5}, 1, (0, 0)),
    ],
)
def test_counts(fields, numel, expected):
    assert Limit(**fields).counts("conv.weight", numel) == expected


@pytest.mark.parametrize(
    ("fields", "numel", "message"),
    [
        ({"min": 0.5, "max": 0.6}, 3, "min: 0.5, max: 0.6: at least 2 and at most 1 would go"),
        ({"min": 0.995}, 100, "min: 0.995: at least 100 and at most 99 would go"),
        ({"min": 0.1}, 1, "min: 0.1: at least 1 and at most 0 would go"),
    ],
)
def test_limits_that_no_count_meets_are_refused(fields, numel, message):
    message = f"sparsity.limits: expected a limit that 'conv.weight' with {numel} entries can meet, got {message}"
    with pytest.raises(UnreachableTargetError, match=re.escape(message)):
        Limit(**fields).counts("conv.weight", numel)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected min, max or both, or fixed alone, got none of them"),
        ({"fixed": 0.5, "max": 0.7}, "expected min, max or both, or fixed alone, got max: 0.7, fixed: 0.5"),
        ({"min": 0.7, "max": 0.5}, "expected min <= max, got min: 0.7, max: 0.5"),
        ({"max": 1.1}, "less than or equal to 1"),
        ({"min": -0.1}, "greater than or equal to 0"),
    ],
)
def test_bad_limits_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Limit(**fields)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_is_read_and_its_content_kept(suffix, tmp_path):
    path = tmp_path / f"limits.{suffix}"
    text = '"backbone.*": {max: 0.5}\nre:head\\..*: {min: 0.1, max: 0.9}\nfc: {fixed: 0}\n'
    path.write_text(
        text
        if suffix == "yaml"
        else '{"backbone.*": {"max": 0.5}, "re:head\\\\..*": {"min": 0.1, "max": 0.9}, "fc": {"fixed": 0}}'
    )
    config = SparsityConfig(schedule=HALF, limits=path)
    assert config.limits == {
        "backbone.*": Limit(max=0.5),
        r"re:head\..*": Limit(min=0.1, max=0.9),
        "fc": Limit(fixed=0),
    }
    assert list(config.limits) == ["backbone.*", r"re:head\..*", "fc"]  # the last that matches counts
    path.unlink()
    assert SparsityConfig.model_validate(dump(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fc: {maximum: 0.5}",
            "limits.yaml:1: fc.maximum: expected one of ['fixed', 'max', 'min'], got the unknown key 'maximum'",
        ),
        ("a: {max: 0.5}\nfc: {max: half}", "limits.yaml:2: fc.max: expected a valid number, got 'half'"),
        ("fc: {min: 1, max: 0}", "limits.yaml:1: fc: expected min <= max, got min: 1, max: 0"),
        ("fc: 0.5", "limits.yaml:1: fc: expected"),
        ("[0.5]", "limits.yaml: expected a mapping of keys at the top level"),
        ("{", "limits.yaml"),
        (None, "limits.yaml: expected a readable YAML file, got 'No such file or directory'"),
    ],
)
def test_faults_of_a_file_name_it(text, message, tmp_path):
    path = tmp_path / "limits.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        SparsityConfig(schedule=HALF, limits=str(path))


def test_patterns_of_limits_are_checked():
    with pytest.raises(ValueError, match="expected a regular expression after 're:', got 're:\\('"):
        SparsityConfig(schedule=HALF, limits={"re:(": Limit(max=0.5)})


def test_faults_of_limits_in_a_recipe_name_the_line(tmp_path):
    text = 'schedule: {type: one_shot, sparsity: 0.5}\nlimits:\n  "head.*": {maxi: 0.5}\n'
    with pytest.raises(
        ConfigError, match=re.escape("recipe.yaml:3: limits.head.*.maxi: expected one of ['fixed', 'max', 'min']")
    ):
        validate(SparsityConfig, parse_yaml(text, "recipe.yaml", tmp_path))
