"""Which weights are chosen, and the reason for each."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparsedet.common.errors import ConfigError, TargetMatchError, UnsupportedShapeError
from sparsedet.sparsity import NM, Targets, Unstructured
from sparsedet.sparsity.targets import find_weights

ASP_RULE = "2:4 (asp) needs out_channels % 8 == 0 and in_channels/groups % 16 == 0, got"
NO_MATCH = "expected a pattern that matches a conv or linear layer, got"
NAMES = (
    "backbone.conv1.weight", "backbone.depthwise.weight", "backbone.frozen.weight",
    "down.weight", "tower.weight", "cls_pred.weight", "fc.weight",
)  # fmt: skip


def chosen(model, pattern=None, **fields):
    rows = Targets(**fields).select(find_weights(model), pattern or Unstructured())
    return [row.name for row in rows if row.chosen]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*",), (), "backbone.conv1 backbone.depthwise down tower cls_pred fc"),
        (("down",), (), "down"),
        (("down.weight", "fc"), (), "down fc"),
        (("backbone.*",), (), "backbone.conv1 backbone.depthwise"),
        (("*.conv?", "[df]*"), (), "backbone.conv1 down fc"),
        ((r"re:(tower|down)",), (), "down tower"),
        ((r"re:.*\.weight",), (r"re:.*[ors].*",), "fc"),
        (("type:Linear",), (), "fc"),
        (("type:Conv2d",), ("backbone.*", "cls_pred"), "down tower"),
        (("type:Module",), ("type:Conv2d",), "fc"),
        (("preset:depthwise",), (), "backbone.depthwise"),
        (("backbone.*",), ("preset:depthwise",), "backbone.conv1"),
    ],
)
def test_grammar(detector, include, exclude, expected):
    names = [name.removesuffix(".weight") for name in chosen(detector, include=include, exclude=exclude)]
    assert names == expected.split()


def test_a_preset_may_match_nothing_but_must_be_known():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    assert chosen(net, exclude=("preset:depthwise",)) == ["0.weight", "1.weight"]
    message = (
        r"expected one of \['depthwise'\] after 'preset:', got 'depthwize'\. Did you mean 'depthwise'\? Correct it."
    )
    with pytest.raises(ValueError, match=message):
        Targets(exclude=("preset:depthwize",))


def test_table_gives_a_reason_for_every_weight(detector):
    targets = Targets(include=("backbone.*", "type:Linear", "tower", "cls_pred"), exclude=("backbone.c*", "cls_pred"))
    rows = targets.select(find_weights(detector), Unstructured())
    assert [(row.name, row.chosen, row.reason) for row in rows] == [
        ("backbone.conv1.weight", False, "exclude 'backbone.c*'"),
        ("backbone.depthwise.weight", True, "include 'backbone.*'"),
        ("backbone.frozen.weight", False, "frozen (requires_grad is False)"),
        ("down.weight", False, "not in include"),
        ("tower.weight", True, "include 'tower'"),
        ("cls_pred.weight", False, "exclude 'cls_pred'"),
        ("fc.weight", True, "include 'type:Linear'"),
    ]
    assert (rows[1].module_type, rows[1].shape, rows[1].numel) == ("Conv2d", (16, 1, 3, 3), 144)


def test_pattern_skips_what_it_cannot_serve_with_the_rule(detector):
    rows = Targets().select(find_weights(detector), NM())
    assert {row.name: row.reason for row in rows if not row.chosen} == {
        "backbone.conv1.weight": "2:4 needs in_channels/groups % 4 == 0, got 3",
        "backbone.depthwise.weight": "2:4 needs in_channels/groups % 4 == 0, got 1",
        "backbone.frozen.weight": "frozen (requires_grad is False)",
        "cls_pred.weight": f"{ASP_RULE} 4 and 32",
        "fc.weight": f"{ASP_RULE} 10 and 32",
    }


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        (
            "backbone.conv1",
            NM(),
            "sparsity.targets.include: expected a weight that can be pruned, got 'backbone.conv1' of shape "
            "(16, 3, 3, 3): 2:4 needs in_channels/groups % 4 == 0, got 3. "
            "Remove it from include, or use the pattern type 'unstructured'.",
        ),
        (
            "backbone.frozen.weight",
            Unstructured(),
            "sparsity.targets.include: expected a weight that can be pruned, got 'backbone.frozen.weight' of "
            "shape (32, 16, 1, 1): frozen (requires_grad is False). "
            "Remove it from include, or set include_frozen: true.",
        ),
    ],
)
def test_a_weight_named_exactly_is_never_skipped(detector, name, pattern, message):
    with pytest.raises(UnsupportedShapeError, match=re.escape(message)):
        chosen(detector, pattern, include=("*", name))


def test_frozen_weights_on_request(detector):
    assert "backbone.frozen.weight" in chosen(detector, include_frozen=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"exclude": ("cls_perd",)},
            f"sparsity.targets.exclude[0]: {NO_MATCH} 'cls_perd', which matches none of 7. "
            "Did you mean 'cls_pred'? Correct or remove it.",
        ),
        (
            {"include": ("*", "neck.*")},
            f"sparsity.targets.include[1]: {NO_MATCH} 'neck.*', which matches none of 7. Correct or",
        ),
        ({"exclude": ("backbone",)}, "Did you mean 'backbone.*', everything inside it?"),
        ({"exclude": ("Conv2d",)}, "Did you mean 'type:Conv2d'?"),
        ({"exclude": ("type:Conv2D",)}, "Did you mean 'type:Conv2d'?"),
        ({"exclude": ("re:conv1",)}, "got 're:conv1', which matches none"),
        ({"exclude": ("re:tow",)}, "got 're:tow', which matches none"),
        (
            {"include": ()},
            "sparsity.targets: expected at least one weight to prune, got none (7 × not in include). Widen",
        ),
        ({"exclude": ("*",)}, "got none (7 × exclude '*')"),
    ],
)
def test_patterns_without_effect_are_refused(detector, fields, message):
    with pytest.raises(TargetMatchError, match=re.escape(message)):
        chosen(detector, **fields)


def test_model_without_layers_is_refused():
    with pytest.raises(TargetMatchError, match=r"got none \(no conv or linear layer\)"):
        chosen(nn.ReLU(), include=())


def test_broken_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"expected a regular expression after 're:', got 're:\(' \(.*\)"):
        Targets(include=("re:(",))


class MyLinear(nn.Linear):
    """A layer of someone else's code."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv3d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1),
        nn.ConvTranspose2d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1), nn.Linear(2, 2), MyLinear(2, 2),
    ],
)  # fmt: skip
def test_every_kind_of_conv_and_linear_layer_is_a_candidate(layer):
    assert chosen(nn.Sequential(nn.BatchNorm1d(2), nn.Embedding(3, 2), layer)) == ["2.weight"]


def test_shared_weights_are_one_candidate_under_their_first_name():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second, "c": first, "d": nn.Linear(4, 4)})
    weights = find_weights(model)
    assert [weight.names for weight in weights] == [("a.weight", "b.weight", "c.weight"), ("d.weight",)]
    assert weights[0].modules == (first, second)
    assert chosen(model, exclude=("b",)) == ["d.weight"]  # left out under any of its names


def test_names_are_those_of_the_plain_model_in_wrappers(detector):
    compiled_part = TinyPart(detector)
    wrapped = (nn.DataParallel(detector), torch.compile(detector), torch.compile(nn.DataParallel(detector)))
    for model in wrapped:
        assert tuple(weight.name for weight in find_weights(model)) == NAMES
    assert find_weights(compiled_part)[0].name == "inner.backbone.conv1.weight"
    averaged = torch.optim.swa_utils.AveragedModel(detector)
    assert tuple(weight.name for weight in find_weights(averaged)) == NAMES


class TinyPart(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = torch.compile(model)


def test_a_submodule_called_module_keeps_its_name():
    assert [weight.name for weight in find_weights(nn.ModuleDict({"module": nn.Linear(2, 2)}))] == ["module.weight"]
    assert [weight.name for weight in find_weights(nn.Linear(2, 2))] == ["weight"]


def test_computed_weights_are_left_out_with_the_reason():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    rows = Targets().select(find_weights(model), Unstructured())
    assert [(row.name, row.chosen) for row in rows] == [("0.weight", False), ("1.weight", True)]
    assert rows[0].reason == "not a plain parameter (computed by a parametrization)"
    with pytest.raises(UnsupportedShapeError, match="Remove it from include, or remove the parametrization"):
        Targets(include=("0",)).select(find_weights(model), Unstructured())


def test_lazy_layers_are_refused():
    with pytest.raises(ConfigError, match=r"model: expected weights with a shape, got the lazy layer '0.weight'"):
        find_weights(nn.Sequential(nn.LazyLinear(4)))
