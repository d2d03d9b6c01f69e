"""What each weight gets: limits, MACs, and what is left out, against hand-worked and naive answers."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsedet.common.errors import ConfigError, SparseDetError, TargetMatchError, UnreachableTargetError
from sparsedet.sparsity import (
    ALLOCATIONS,
    NM,
    Activation,
    Calibration,
    Erk,
    Global,
    Gradient,
    Lamp,
    LevelWise,
    Limit,
    Obc,
    OneShot,
    Sensitivity,
    Sparsifier,
    SparsityConfig,
    Targets,
    Uniform,
)

HALF = OneShot(sparsity=0.5)


def make(name, names):
    """An allocation by its name; of `sensitivity` one that knows `names`."""
    if name != "sensitivity":
        return ALLOCATIONS[name]()
    points = [{"target_sparsity": at, "measured_sparsity": at, "value": -at} for at in (0.3, 0.6, 0.9)]
    return Sensitivity(
        curves={"fingerprint": "", "dense": 0.0, "curves": {key: points for key in names}, "left_out": {}}
    )


def counts(sparsifier, level=0):
    sizes = {row.name: row.numel for row in sparsifier.selection}
    return {name: round(share * sizes[name]) for name, share in sparsifier.allocate(level).items()}


def linear(*sizes):
    """Linear layers a, b, c … of so many weights, of which 1, 2, 3 … are the magnitudes."""
    model = nn.ModuleDict()
    for name, size in zip("abcdef", sizes, strict=False):
        layer = nn.Linear(size, 1, bias=False)
        layer.weight.data = torch.arange(1, size + 1.0)[None]
        model[name] = layer
    return model


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [30, 15, 3]),
        ({"a": {"max": 0.2}}, [20, 23, 5]),  # 28 are left for 60, in equal shares: 23.33 and 4.67
        ({"b": {"min": 0.8}}, [7, 40, 1]),  # 8 are left for 110
        ({"a.weight": {"fixed": 0}}, [0, 40, 8]),
        ({"*": {"max": 0.35}, "c": {"max": 0.1}}, [31, 16, 1]),  # the last that matches counts
        ({"c": {"max": 0.1}, "*": {"max": 0.35}}, [30, 15, 3]),
        ({"re:[ab]": {"max": 0.27}}, [27, 13, 8]),
        ({"c": {"fixed": 1}}, [25, 13, 10]),  # a dead layer: it was asked for
    ],
)
def test_limits_by_hand(limits, expected):
    config = SparsityConfig(schedule=OneShot(sparsity=0.3), allocation=Uniform(), limits=limits)
    sparsifier = Sparsifier(linear(100, 50, 10), config)
    assert list(counts(sparsifier).values()) == expected
    sparsifier.prune_(0)
    assert [int((~mask).sum()) for mask in sparsifier.masks.values()] == expected


def test_limits_of_whole_blocks():
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(10, 10)})  # 15 and 50 blocks of 1 x 2
    limits = {"a": {"fixed": 0.5}, "b": {"max": 0.55}}
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.5), pattern={"type": "block", "shape": (1, 2)}, allocation=Lamp(), limits=limits
    )
    # 7.5 blocks, half to even; at most 27.5; of 130 weights 65 go: 16 and 49, of which 48 or 50 can
    assert counts(Sparsifier(model, config)) == {"a.weight": 16, "b.weight": 48}
    limits = {"a": Limit(max=0.55), "b": Limit(min=0.49, max=0.5)}  # 8.25 blocks; 24.5 to 25
    config = config.model_copy(update={"limits": limits, "schedule": OneShot(sparsity=0.5077)})
    assert counts(Sparsifier(model, config)) == {"a.weight": 16, "b.weight": 50}  # 66


LAYERS = (
    lambda: nn.Linear(7, 3),
    lambda: nn.Conv2d(2, 6, 3, padding=1),
    lambda: nn.Conv2d(6, 6, 1, groups=3),
    lambda: nn.Conv1d(4, 5, 1),
)
shares = st.floats(0, 1).map(lambda share: round(share, 3))
limits = st.one_of(
    st.builds(lambda share: {"fixed": share}, shares),
    st.builds(lambda share: {"max": share}, shares),
    st.builds(lambda share: {"min": share, "max": 1.0}, shares),
    st.builds(lambda a, b: {"min": min(a, b), "max": max(a, b)}, shares, shares),
)


@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_limits_hold_at_every_level_with_exact_nested_counts(name, bag, data):
    picked = data.draw(st.lists(st.integers(0, len(LAYERS) - 1), min_size=1, max_size=4, unique=True))
    model = bag(**{f"layer{index}": LAYERS[index]() for index in picked})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) / 0.5).round() * 0.5
    names = [f"layer{index}.weight" for index in picked]
    asked = {key: data.draw(limits) for key in names if data.draw(st.booleans())}
    sizes = {key: model.get_parameter(key).numel() for key in names}
    levels = tuple(sorted(data.draw(st.lists(st.floats(0, 0.999), min_size=1, max_size=3, unique=True))))
    config = SparsityConfig(schedule=LevelWise(levels=levels), allocation=make(name, names), limits=asked)
    try:
        sparsifier = Sparsifier(model, config, ())
    except UnreachableTargetError:
        must, may = 0, 0
        for key in names:
            try:
                low, high = Limit(**asked[key]).counts(key, sizes[key]) if key in asked else (0, sizes[key] * 99 // 100)
            except UnreachableTargetError:
                return
            must, may = must + low, may + high
        targets = [round(level * sum(sizes.values())) for level in levels]
        assert min(targets) < must or max(targets) > may
        return
    before = {}
    for level, target in enumerate(levels):
        sparsifier.prune_(level)
        zeros = {key: int((~mask).sum()) for key, mask in sparsifier.masks.items()}
        assert sum(zeros.values()) == round(target * sum(sizes.values()))
        for key, fields in asked.items():
            low, high = Limit(**fields).counts(key, sizes[key])
            assert low <= zeros[key] <= high
        assert all(not (mask & ~before[key]).any() for key, mask in sparsifier.masks.items() if before)
        before = {key: mask.clone() for key, mask in sparsifier.masks.items()}


@pytest.mark.parametrize(
    ("limits", "schedule", "message"),
    [
        (
            {"a": {"max": 0.5}},
            OneShot(sparsity=0.75),
            "sparsity.schedule: expected at most 0.6625 (99 % of each chosen weight, or its limit; scope 'all'), "
            "got 0.75. Lower it, choose more weights, or set scope: chosen.",
        ),
        (
            {"a": {"min": 0.5}, "b": {"fixed": 0.4}},
            LevelWise(levels=(0.46, 0.6)),
            "sparsity.schedule: expected at least 0.4667 (which the limits make go), got 0.46. "
            "Raise it, or lower the limits.",
        ),
    ],
)
def test_limits_that_do_not_allow_a_target_are_refused(limits, schedule, message):
    # of 240 weights 80 + 79 and 80 + 32 go; 99 % of 80 is 79
    with pytest.raises(UnreachableTargetError, match=re.escape(message)):
        Sparsifier(linear(160, 80), SparsityConfig(schedule=schedule, limits=limits))


def test_limits_of_nothing_are_refused(detector):
    config = SparsityConfig(schedule=HALF, limits={"cls_perd": {"max": 0.5}})
    message = "sparsity.limits[0]: expected a pattern that matches a conv or linear layer, got 'cls_perd'"
    with pytest.raises(TargetMatchError, match=re.escape(message)):
        Sparsifier(detector, config)
    config = SparsityConfig(
        schedule=HALF, targets=Targets(exclude=("fc",)), limits={"fc": {"max": 0.5}, "tower": {"max": 0.5}}
    )
    message = (
        "sparsity.limits: expected patterns of weights that are pruned, got 'fc', which matches only weights that are "
        "left out (fc.weight). Remove it."
    )
    with pytest.raises(TargetMatchError, match=re.escape(message)):
        Sparsifier(detector, config)


def test_limits_of_presets(detector):
    limits = {"preset:prediction": {"max": 0.25}, "preset:stem": {"fixed": 0.125}, "preset:depthwise": {"fixed": 0}}
    config = SparsityConfig(schedule=HALF, limits=limits, input_shape=(1, 3, 16, 16))
    sparsifier = Sparsifier(detector, config)
    found = counts(sparsifier)
    assert sum(found.values()) == round(0.5 * sum(row.numel for row in sparsifier.selection))
    assert (found["backbone.conv1.weight"], found["backbone.depthwise.weight"]) == (432 / 8, 0)
    assert found["cls_pred.weight"] <= 32
    assert found["fc.weight"] <= 80


# --- compensate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALLOCATIONS if name != "uniform"])
def test_without_compensation_a_weight_gets_what_it_would_get_if_nothing_were_left_out(name, detector):
    weights = [key for key, _ in detector.named_parameters() if key.endswith("weight")]
    fields = {"schedule": LevelWise(levels=(0.3, 0.45)), "allocation": make(name, weights)}
    images = (torch.zeros(1, 3, 32, 32),)
    whole = Sparsifier(detector, SparsityConfig(targets=Targets(include_frozen=True), **fields), images)
    targets = Targets(exclude=("tower", "fc"))  # and backbone.frozen
    part = Sparsifier(detector, SparsityConfig(targets=targets, compensate=False, **fields), images)
    made_up = Sparsifier(detector, SparsityConfig(targets=targets, **fields), images)
    for level, target in enumerate((0.3, 0.45)):
        expected, found = whole.allocate(level), part.allocate(level)
        assert found == {key: expected[key] for key in found}
        assert found.keys() == expected.keys() - {"tower.weight", "fc.weight", "backbone.frozen.weight"}
        total = sum(row.numel for row in part.selection)
        assert sum(counts(made_up, level).values()) == round(target * total)
        assert sum(counts(part, level).values()) < round(target * total)
    num_zeros = sum(counts(part, 1).values())
    part.prune_(1)
    assert part.measure().measured_sparsity == num_zeros / total


def test_without_compensation_uniform_gives_every_weight_the_target():
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.3), allocation=Uniform(), compensate=False, targets=Targets(exclude=("b",))
    )
    # MSBench, prun_algo 0: 30 % asked, one layer left out: 11 % of all weights
    assert counts(Sparsifier(linear(100, 180, 10), config)) == {"a.weight": 30, "c.weight": 3}


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_without_compensation_uniform_counts_as_msbench_does(sparsity, golden):
    """But where it prunes one too many, since ``(1 - s) * n`` falls short of a whole number, or all of a layer."""
    cases = golden("magnitude_masks.json")["cases"].values()
    facts = [case["out"][key] for case in cases if (key := f"unstructured@{sparsity}") in case.get("out", {})]
    sizes, theirs = [fact["n"] for fact in facts], [fact["prune_num_msbench"] for fact in facts]
    model = nn.ModuleList(nn.Linear(size, 1) for size in sizes)
    config = SparsityConfig(schedule=OneShot(sparsity=sparsity), allocation=Uniform(), compensate=False)
    found = list(counts(Sparsifier(model, config)).values())
    for size, ours, their in zip(sizes, found, theirs, strict=True):
        is_whole = float(sparsity * size).is_integer()
        assert ours == min(round(sparsity * size) if is_whole else their, size * 99 // 100)
    assert found != [round(sparsity * size) for size in sizes] or sparsity == 0.5


def test_without_compensation_uniform_depends_on_no_other_layer():
    config = SparsityConfig(schedule=OneShot(sparsity=0.07), allocation=Uniform(), compensate=False)
    # 0.07 * 100 is 7.000000000000001 in floating point
    assert list(counts(Sparsifier(linear(100, 101, 102, 5), config)).values()) == [7, 8, 8, 1]
    limited = config.model_copy(update={"limits": {"a": Limit(min=0.2), "b": Limit(max=0.02)}})
    assert list(counts(Sparsifier(linear(100, 101, 102, 5), limited)).values()) == [20, 2, 8, 1]


def test_without_compensation_weights_without_scores_take_no_part():
    model = linear(100, 100)
    model["b"].weight = nn.Parameter(torch.ones(1, 100, dtype=torch.complex64))
    model["c"] = linear(100)["a"]
    config = SparsityConfig(schedule=HALF, allocation=Global(), compensate=False)
    assert counts(Sparsifier(model, config)) == {"a.weight": 50, "c.weight": 50}


class Odd(nn.Module):
    """Besides a layer to prune: a complex one, an empty one, and one that no pass calls."""

    def __init__(self):
        super().__init__()
        self.complex = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
        self.empty, self.good, self.idle = (nn.Linear(*sizes, bias=False) for sizes in ((0, 4), (4, 25), (4, 25)))

    def forward(self, batch):
        return self.good(self.complex(batch.to(torch.complex64)).real + self.empty(batch[:, :0]))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("criterion", [Activation(), Gradient(), Obc()])
def test_without_compensation_data_are_wanted_of_what_has_a_score_that_counts(criterion):
    calibration = Calibration([torch.ones(2, 4)], lambda model, batch: model(batch), lambda m, b: m(b).square().mean())
    config = SparsityConfig(
        schedule=HALF, allocation=Uniform(), criterion=criterion, compensate=False, targets=Targets(exclude=("idle",))
    )
    sparsifier = Sparsifier(Odd(), config, calibration=calibration)
    sparsifier.prune_(0)
    assert sparsifier.masks["good.weight"].sum() == 50
    sparsifier = Sparsifier(Odd(), config.model_copy(update={"allocation": Global()}), calibration=calibration)
    if criterion == Obc():  # goes by magnitudes
        return sparsifier.prune_(0)
    with pytest.raises(ConfigError, match=r"idle\.weight.*With compensate: false the scores of what is left out count"):
        sparsifier.prune_(0)


# --- MACs ----------------------------------------------------------------------------------------------------


def test_macs_by_hand(bag):
    # inputs of 4 x 4 (kernel 1) and 2 x 2 pixels, and a linear layer: a weight takes part in 16, 4 and 1 MACs
    model = bag(a=nn.Conv2d(2, 2, 1), b=nn.Conv2d(2, 4, 1), c=nn.Linear(4, 5))
    for module, value in zip(model.children(), (3.0, 1.0, 2.0), strict=True):
        nn.init.constant_(module.weight, value)

    def run():
        model.a(torch.zeros(1, 2, 4, 4)), model.b(torch.zeros(1, 2, 2, 2)), model.c(torch.zeros(1, 4))

    levels = (0.1, 0.3, 0.55, 0.75, 0.9)  # of 64 + 32 + 20 = 116 MACs: 11.6, 34.8, 63.8, 87.0, 104.4
    config = SparsityConfig(schedule=LevelWise(levels=levels), allocation=Global(), budget="macs")
    lower = config.model_copy(update={"schedule": LevelWise(levels=levels[:4])})
    sparsifier = Sparsifier(model, lower, (), run)
    # the smallest weights go first: up to 7 of b (4 MACs each), then up to 19 of c (1 each), then of a (16 each)
    assert [list(counts(sparsifier, level).values()) for level in range(4)] == [
        [0, 3, 0],
        [0, 7, 7],
        [2, 7, 19],
        [3, 7, 19],
    ]
    message = "expected at most 0.8189 of the multiply-accumulates (99 % of each chosen weight; scope 'all'), got 0.9"
    with pytest.raises(UnreachableTargetError, match=re.escape(message)):
        Sparsifier(model, config, (), run)


@pytest.mark.parametrize("scope", ["all", "chosen"])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_macs_are_missed_by_less_than_those_of_one_weight(name, scope, detector):
    weights = [key for key, _ in detector.named_parameters() if key.endswith("weight")]
    levels = (0.2, 0.5, 0.8)
    config = SparsityConfig(
        targets=Targets(exclude=("fc", "backbone.conv1")),
        schedule=LevelWise(levels=levels),
        allocation=make(name, weights),
        scope=scope,
        budget="macs",
        input_shape=(1, 3, 32, 32),
    )
    sparsifier = Sparsifier(detector, config)
    for level, target in enumerate(levels):
        sparsifier.prune_(level)
        layers = [layer for layer in sparsifier.measure().layers if layer.chosen or scope == "all"]
        removed = sum(layer.macs * layer.num_zeros / layer.numel for layer in layers)
        total = sum(layer.macs for layer in layers)
        largest = max(layer.macs / layer.numel for layer in layers if layer.chosen)
        assert 0 <= removed - target * total + 1e-6 < largest + 1e-6
    assert sum(layer.num_zeros for layer in layers) != round(0.8 * sum(layer.numel for layer in layers))


def test_macs_need_inputs_that_use_a_weight(detector):
    config = SparsityConfig(schedule=HALF, budget="macs")
    message = "sparsity.input_shape: expected the shape of an input, which the budget 'macs' needs, got null"
    with pytest.raises(ConfigError, match=message):
        Sparsifier(detector, config)
    with pytest.raises(UnreachableTargetError, match="expected a forward pass that uses a weight"):
        Sparsifier(detector, config, (), run=lambda: None)


def test_weights_that_the_pass_does_not_use_cost_nothing(detector):
    images = (torch.zeros(1, 3, 16, 16),)

    def run(images):
        return detector.down(detector.backbone(images))

    nn.init.ones_(detector.tower.weight)  # larger than all others: would go last
    config = SparsityConfig(schedule=HALF, budget="macs", allocation=Global())
    sparsifier = Sparsifier(detector, config, images, run)
    sparsifier.prune_(0)
    assert sparsifier.measure().macs_kept == pytest.approx(0.5, abs=1e-3)
    assert sparsifier.masks["tower.weight"].all()
    config = SparsityConfig(schedule=HALF, budget="macs", targets=Targets(include=("tower", "fc")))
    with pytest.raises(UnreachableTargetError, match=r"expected at most 0\.0000 of the multiply-accumulates"):
        Sparsifier(detector, config, images, run)


# --- weights of all kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_ties_constants_and_short_floats_give_exact_counts(name, dtype, bag):
    model = bag(ties=nn.Linear(12, 12), constant=nn.Linear(10, 10), zero=nn.Linear(5, 5), normal=nn.Conv2d(3, 8, 3))
    generator = torch.Generator().manual_seed(0)
    model.ties.weight.data = torch.randint(-3, 4, (12, 12), generator=generator).float()
    nn.init.constant_(model.constant.weight, 0.25)
    nn.init.zeros_(model.zero.weight)
    allocation = make(name, [key for key, _ in model.named_parameters()])
    profile_shape = (torch.zeros(1, 12),)

    def run(inputs):
        return model()

    config = SparsityConfig(schedule=LevelWise(levels=(0.25, 0.5, 0.75)), allocation=allocation)
    sparsifier = Sparsifier(model, config, profile_shape, run)
    model.to(dtype)
    before = {}
    for level in range(3):
        sparsifier.prune_(level)
        pruned = {key: ~mask for key, mask in sparsifier.masks.items()}
        assert sum(int(mask.sum()) for mask in pruned.values()) == round(
            (0.25, 0.5, 0.75)[level] * (144 + 100 + 25 + 216)
        )
        assert all((model.get_parameter(key)[mask] == 0).all() for key, mask in pruned.items())
        assert all((mask | ~before[key]).all() for key, mask in pruned.items() if before)
        before = pruned


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fields", [{"pattern": NM()}, *({"allocation": name} for name in ALLOCATIONS)], ids=str)
def test_weights_that_are_not_finite_are_refused(value, fields, bag):
    model = bag(a=nn.Linear(16, 8), b=nn.Linear(16, 8))
    model.b.weight.data[3, 5] = value
    if "allocation" in fields:
        fields = {"allocation": make(fields["allocation"], ["a.weight", "b.weight"])}
    sparsifier = Sparsifier(model, SparsityConfig(schedule=HALF, **fields), ())
    before = model.a.weight.detach().clone()
    with pytest.raises(SparseDetError, match=r"b\.weight: expected finite weights, got inf or NaN"):
        sparsifier.prune_(0)
    assert torch.equal(model.a.weight, before)
    assert (sparsifier.masks, sparsifier.level) == ({}, None)


def test_tiny_layers_that_rounding_cannot_prune_so_far_name_what_can():
    model = linear(3, 3, 1)  # at most 2 + 2 + 0 of 7 go
    message = "expected at most 0.5714 (99 % of each chosen weight; scope 'all'), got 0.7"
    with pytest.raises(UnreachableTargetError, match=re.escape(message)):
        Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.7)))
    assert counts(Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.57), allocation=Erk()))) == {
        "a.weight": 2, "b.weight": 2, "c.weight": 0,
    }  # fmt: skip


@pytest.mark.parametrize("allocation", [Lamp(), Global(), Erk(), Uniform()])
def test_projections_of_attention_are_pruned_as_any_other_weight(allocation):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    config = SparsityConfig(schedule=LevelWise(levels=(0.4, 0.8)), allocation=allocation)
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(optimizer)
    for step in range(4):
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        model(torch.randn(5, 2, 16)).square().mean().backward()
        optimizer.step()
        names = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
        weights = [model.get_parameter(name) for name in names]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert zeros == round((0.4, 0.8)[step // 2] * sum(weight.numel() for weight in weights))
    assert (model.self_attn.in_proj_weight == 0).any()
