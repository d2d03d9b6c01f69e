"""Which weights are chosen, and the reason for each."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparsedet.common.errors import TargetMatchError, UnsupportedShapeError
from sparsedet.sparsity import (
    NM,
    NM2D,
    Activation,
    Block,
    Calibration,
    Channel,
    Obc,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Targets,
    Unstructured,
)
from sparsedet.sparsity.weights import find_weights

ASP_RULE = "2:4 (asp) needs out_channels % 8 == 0 and in_channels/groups % 16 == 0, got"
NO_MATCH = "expected a pattern that matches a conv or linear layer, got"


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


def test_depthwise_may_match_nothing_but_a_preset_must_be_known():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    assert chosen(net, exclude=("preset:depthwise",)) == ["0.weight", "1.weight"]
    message = (
        r"expected one of \['depthwise', 'grouped', 'prediction', 'stem'\] after 'preset:', got 'depthwize'\. "
        r"Did you mean 'depthwise'\? Correct it."
    )
    with pytest.raises(ValueError, match=message):
        Targets(exclude=("preset:depthwize",))


def test_grouped_are_all_convolutions_in_groups_and_may_be_none():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4), nn.Linear(8, 2))
    assert chosen(net, include=("preset:grouped",)) == ["1.weight", "2.weight"]
    assert chosen(net, exclude=("preset:grouped",)) == ["0.weight", "3.weight"]
    assert chosen(net[:1], exclude=("preset:grouped",)) == ["0.weight"]


def test_stem_is_the_first_convolution(detector):
    assert chosen(detector, include=("preset:stem",)) == ["backbone.conv1.weight"]
    mixed = nn.ModuleDict({"fc": nn.Linear(2, 2), "b": nn.Conv2d(4, 8, 1), "c": nn.Conv2d(8, 4, 1)})
    mixed["a"] = nn.Conv2d(4, 4, 1, groups=4)
    assert chosen(mixed, include=("preset:stem",)) == ["b.weight"]  # no other reads fewer than four


def test_stem_is_refused_where_it_cannot_be_told():
    net = nn.ModuleDict({"head": nn.Conv2d(64, 4, 1), "backbone": nn.Conv2d(3, 64, 3), "neck": nn.Conv2d(9, 9, 1)})
    message = (
        "sparsity.targets.exclude[1]: expected the first convolution to read the fewest channels, got 'head.weight' "
        "which reads 64 and 'backbone.weight' which reads 3. Name the stem."
    )
    with pytest.raises(TargetMatchError, match=re.escape(message)):
        chosen(net, exclude=("neck", "preset:stem"))
    with pytest.raises(TargetMatchError, match=r"include\[0\]: expected a model with a convolution, got none"):
        chosen(nn.Linear(2, 2), include=("preset:stem",))


def test_prediction_layers_are_those_that_were_found(detector):
    weights, targets = find_weights(detector), Targets(exclude=("preset:prediction",))
    rows = targets.select(weights, Unstructured(), {"cls_pred.weight", "fc.weight"})
    assert [row.name for row in rows if row.reason == "exclude 'preset:prediction'"] == ["cls_pred.weight", "fc.weight"]
    message = "sparsity.targets.exclude[0]: expected example inputs, which 'preset:prediction' needs, got none"
    with pytest.raises(TargetMatchError, match=re.escape(message)):
        targets.select(weights, Unstructured())


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


class Experts(nn.Linear):
    """Several linear layers in one: a weight of (experts, out, in)."""

    def __init__(self, num_experts, num_in, num_out):
        super().__init__(num_in, num_out)
        self.weight = nn.Parameter(torch.randn(num_experts, num_out, num_in))

    def forward(self, batch):
        return torch.einsum("ebi,eoi->ebo", batch, self.weight)


@pytest.mark.parametrize("pattern", [NM(n=1, m=4), NM2D(), Block(shape=(1, 4)), Channel()])
def test_a_subclass_with_dimensions_of_its_own_is_pruned_anywhere_or_not_at_all(pattern):
    weights = find_weights(nn.ModuleDict({"experts": Experts(8, 4, 16), "linear": nn.Linear(16, 8)}))
    reason = Targets().select(weights, pattern)[0].reason
    assert reason == f"{pattern.label} needs a weight of 2 dimensions, got 3"
    assert all(row.chosen for row in Targets().select(weights, Unstructured()))


@pytest.mark.parametrize("kinds", [(nn.Conv2d, nn.ConvTranspose2d), (nn.ConvTranspose2d, nn.Conv2d)])
def test_a_weight_is_served_if_it_is_in_all_layers_that_share_it(kinds):
    model = nn.ModuleDict({"a": kinds[0](16, 16, 1), "b": kinds[1](16, 16, 1), "c": nn.Conv2d(16, 16, 1)})
    model.b.weight = model.a.weight
    for pattern in (NM(), NM2D(), Block(shape=(4, 1)), Channel()):
        row = Targets().select(find_weights(model), pattern)[0]
        assert (row.name, row.reason) == ("a.weight", f"{pattern.label} does not serve transposed convolutions")
    assert chosen(model) == ["a.weight", "c.weight"]
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=Activation())
    calibration = Calibration([torch.ones(1, 16, 2, 2)], lambda model, batch: model.c(model.b(model.a(batch))))
    with pytest.raises(UnsupportedShapeError, match=r"share with none but their like, got \['a.weight', 'b.weight'\]"):
        Sparsifier(model, config, calibration=calibration).prune_(0)
    with pytest.raises(UnsupportedShapeError, match=r"transposed convolutions, such as 'a.weight', got 'obc'"):
        Sparsifier(model, config.model_copy(update={"criterion": Obc()}), calibration=calibration)


@pytest.mark.parametrize("criterion", [Activation(), Obc()])
def test_criteria_that_watch_inputs_refuse_dimensions_of_its_own(criterion):
    calibration = Calibration([torch.ones(8, 2, 4)], lambda model, batch: model(batch))
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=criterion)
    sparsifier = Sparsifier(nn.Sequential(Experts(8, 4, 16)), config, calibration=calibration)
    with pytest.raises(
        UnsupportedShapeError, match=r"weights of 2 dimensions .* got '0\.weight' of shape \(8, 16, 4\)"
    ):
        sparsifier.prune_(0)


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
        chosen(nn.LSTM(4, 4))


def test_a_name_is_exact_whatever_its_characters():
    model = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2)})
    assert chosen(model, include=("a[0]",)) == chosen(model, include=("a[0].weight",)) == ["a[0].weight"]
    assert chosen(model, include=("?[0]",)) == ["a0.weight"]


def test_broken_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"expected a regular expression after 're:', got 're:\(' \(.*\)"):
        Targets(include=("re:(",))


def test_shared_weights_are_left_out_under_any_of_their_names():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second, "c": first, "d": nn.Linear(4, 4)})
    assert chosen(model) == ["a.weight", "d.weight"]
    for name in "abc":
        assert chosen(model, exclude=(name,)) == ["d.weight"]
        assert chosen(model, include=(name,)) == ["a.weight"]


def tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "bad": nn.Linear(4, 4)})
    model.bad.weight = model.embedding.weight
    return model


def with_weight(weight):
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight)
    return nn.ModuleDict({"bad": layer})


@pytest.mark.parametrize(
    ("model", "reason", "remedy"),
    [
        (
            nn.ModuleDict({"bad": parametrizations.weight_norm(nn.Linear(4, 4))}),
            "no parameter of the layer (a buffer, or computed by a parametrization or hook)",
            "make it one",
        ),
        (tied(), "shared with embedding.weight", "give each module a weight of its own"),
        (
            with_weight(torch.zeros(4, 4, dtype=torch.complex64)),
            "complex (torch.complex64)",
            "hold real and imaginary parts in two layers",
        ),
        (with_weight(torch.zeros(0, 4)), "empty", "give the layer channels"),
        (with_weight(torch.zeros(4, 4, device="meta")), "without values (meta device)", "move the model to a device"),
    ],
)
def test_weights_that_cannot_be_pruned_are_left_out_with_the_reason(model, reason, remedy):
    model = nn.ModuleDict({**model, "good": nn.Linear(4, 4)})
    rows = Targets().select(find_weights(model), Unstructured())
    assert [(row.name, row.chosen, row.reason) for row in rows] == [
        ("bad.weight", False, reason),
        ("good.weight", True, "include '*'"),
    ]
    with pytest.raises(UnsupportedShapeError, match=re.escape(f": {reason}. Remove it from include, or {remedy}.")):
        Targets(include=("bad",)).select(find_weights(model), Unstructured())


def test_projections_of_attention_are_named_by_layer_weight_and_type():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "fc": nn.Linear(16, 16)})
    projections = ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert chosen(model, include=("attention*",)) == projections
    assert chosen(model, include=("attention",)) == ["attention.in_proj_weight"]
    assert chosen(model, include=("type:MultiheadAttention", "attention.out_proj")) == projections
    assert chosen(model, exclude=("type:Linear",)) == ["attention.in_proj_weight"]
    rows = Targets().select(find_weights(model), NM())
    assert (rows[0].module_type, rows[0].shape, rows[0].chosen) == ("MultiheadAttention", (48, 16), True)
    model["small"] = nn.MultiheadAttention(6, 2)
    assert Targets().select(find_weights(model), NM())[3].reason == "2:4 needs in_channels/groups % 4 == 0, got 6"
