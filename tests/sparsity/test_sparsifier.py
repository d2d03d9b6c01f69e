"""The sparsifier as a whole: levels, state, copies, several models."""

import copy
import gc
import io
import re
import weakref

import pytest
import torch
from torch import nn

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import (
    CheckpointError,
    ConfigError,
    SparseDetError,
    TargetMatchError,
    UnreachableTargetError,
)
from sparsedet.sparsity import (
    NM,
    Global,
    Lamp,
    LevelWise,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Targets,
    Uniform,
    check_n_m,
)

LEVELS = SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6, 0.9)))


def zero_bits(weight):
    """Entries that are exactly +0.0."""
    return weight.detach().view(torch.int32) == 0


def train_step(model, optimizer, seed=0):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    sum(output.square().mean() for output in model(images)).backward()
    optimizer.step()


def test_level_run(detector):
    keys = list(detector.state_dict())
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.attach(optimizer)
    total = sum(row.numel for row in sparsifier.selection)
    assert (sparsifier.level, sparsifier.masks) == (None, {})
    pruned_at = []
    for step in range(9):
        if sparsifier.before_step(step, total_steps=9):
            pruned_at.append(step)
        train_step(detector, optimizer, step)
        zeros = sum(int(zero_bits(detector.get_parameter(name)).sum()) for name in sparsifier.masks)
        assert zeros == round((0.3, 0.6, 0.9)[step // 3] * total)
        assert sparsifier.level == step // 3
    assert pruned_at == list(sparsifier.boundaries(9)) == [0, 3, 6]
    assert sparsifier.measure().measured_sparsity == round(0.9 * total) / total
    assert sparsifier.target_sparsities == (0.3, 0.6, 0.9)
    assert list(detector.state_dict()) == keys


def test_measurement_carries_the_selection(detector):
    sparsifier = Sparsifier(detector, LEVELS, (torch.zeros(1, 3, 16, 16),))
    found = sparsifier.measure()
    assert [(row.name, row.chosen, row.reason) for row in found.layers] == [
        (row.name, row.chosen, row.reason) for row in sparsifier.selection
    ]
    assert found.num_macs == sum(sparsifier.profile.num_macs.values())
    assert found.measured_sparsity_chosen == 0


def test_a_model_without_parameters_is_refused():
    with pytest.raises(TargetMatchError, match="no conv or linear layer"):
        Sparsifier(nn.ReLU(), SparsityConfig(schedule=OneShot(sparsity=0.5), input_shape=(1, 3)))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (nn.Linear(4, 6), "expected a weight '0.weight' of shape (4, 4) as in the pruned model, got none"),
        (None, "expected a weight '1.weight' of shape (6, 4) as in the pruned model, got the shape (4, 5)"),
    ],
)
def test_masks_are_not_applied_to_another_model(other, words):
    sparsifier = Sparsifier(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)), SparsityConfig(schedule=OneShot(sparsity=0.5))
    )
    sparsifier.prune_(0)
    other = other or nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    with pytest.raises(ConfigError, match=re.escape(words)):
        sparsifier.apply_(other)
    assert all(parameter.all() for parameter in other.parameters())


def test_a_state_without_masks_is_refused(detector):
    with pytest.raises(CheckpointError, match=r"masks: expected the state of a sparsifier, got \['level'\]"):
        Sparsifier(detector, SparsityConfig(schedule=OneShot(sparsity=0.3))).load_state_dict({"level": 0})


def test_input_shape_of_the_config_is_used(detector):
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), input_shape=(1, 3, 16, 32))
    assert Sparsifier(detector, config).profile.network_input_size == 32
    assert Sparsifier(detector.double(), config).profile.network_input_size == 32
    assert Sparsifier(detector, config, (torch.zeros(1, 3, 64, 64).double(),)).profile.network_input_size == 64
    assert Sparsifier(detector, LEVELS).profile is None


@pytest.mark.parametrize("scope", ["all", "chosen"])
def test_scope_says_what_the_target_is_a_share_of(scope, detector):
    targets = Targets(exclude=("fc", "cls_pred"))
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), targets=targets, scope=scope, allocation=Uniform())
    sparsifier = Sparsifier(detector, config)
    sparsifier.prune_(0)
    found = sparsifier.measure()
    if scope == "all":  # what is left out is made up for
        assert found.measured_sparsity == pytest.approx(0.5, abs=1e-4)
        assert found.measured_sparsity_chosen > 0.51
    else:
        assert found.measured_sparsity_chosen == pytest.approx(0.5, abs=1e-4)
        assert found.measured_sparsity < 0.49
    assert not (detector.fc.weight == 0).any()


def test_unreachable_target_is_refused_before_training():
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 20))
    config = SparsityConfig(schedule=LevelWise(levels=(0.3, 0.6)), targets=Targets(exclude=("1",)))
    message = (
        "sparsity.schedule: expected at most 0.4950 (99 % of each chosen weight; scope 'all'), got 0.6. "
        "Lower it, choose more weights, or set scope: chosen."
    )
    with pytest.raises(UnreachableTargetError, match=re.escape(message)):
        Sparsifier(model, config)
    Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.495), targets=Targets(exclude=("1",)))).prune_(0)
    assert int((model[0].weight == 0).sum()) == 198


def test_zeros_that_are_there_already_are_counted_in():
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 20))
    model[0].weight.data[:3] = 0  # 60 of 400
    Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=0.5))).prune_(0)
    assert sum(int((layer.weight == 0).sum()) for layer in model) == 200


@pytest.mark.parametrize("allocation", [Lamp(), Uniform()])
def test_later_masks_contain_earlier_ones_whatever_the_weights_did(allocation, detector):
    sparsifier = Sparsifier(detector, SparsityConfig(schedule=LEVELS.schedule, allocation=allocation))
    sparsifier.prune_(0)
    first = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    with torch.no_grad():  # as a load of other weights would: pruned entries are the largest now
        for name, mask in first.items():
            detector.get_parameter(name).copy_(torch.where(mask, 0.01 * torch.randn(mask.shape), 5.0))
    sparsifier.prune_(1)
    assert all(not (sparsifier.masks[name] & ~mask).any() for name, mask in first.items())
    assert all(zero_bits(detector.get_parameter(name))[~mask].all() for name, mask in sparsifier.masks.items())


def test_pruned_weights_stay_pruned_where_others_became_zero(bag):
    model = bag(a=nn.Linear(10, 1), b=nn.Linear(10, 1))
    nn.init.ones_(model.a.weight)
    nn.init.constant_(model.b.weight, 0.1)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.25, 0.5)), allocation=Global()))
    sparsifier.prune_(0)
    nn.init.zeros_(model.a.weight)  # all as small as the five that are pruned, and earlier in the order
    sparsifier.prune_(1)
    assert {name: int((~mask).sum()) for name, mask in sparsifier.masks.items()} == {"a.weight": 5, "b.weight": 5}


def test_pruning_a_level_twice_changes_nothing(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.prune_(1)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter))
    sparsifier.prune_(1)
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in before.items())
    assert zero_bits(detector.tower.weight)[~before["tower.weight"]].all()


@pytest.mark.parametrize("level", [0, 3, -1])
def test_levels_that_cannot_be_pruned_are_refused(level, detector):
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.prune_(1)
    with pytest.raises(ConfigError, match=rf"level: expected 1 \(pruned so far\) to 2 \(the last\), got {level}."):
        sparsifier.prune_(level)


def test_allocate_has_no_side_effect_and_says_what_prune_does(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    before = copy.deepcopy(detector.state_dict())
    every_level = sparsifier.allocate_levels()
    assert every_level == [sparsifier.allocate(level) for level in range(3)]
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    assert sparsifier.level is None
    sparsifier.prune_(2)
    assert {row.name: row.sparsity for row in sparsifier.measure().layers if row.chosen} == every_level[2]


def test_two_to_four(detector):
    dense_names = ("backbone.conv1", "backbone.depthwise", "backbone.frozen", "cls_pred", "fc")
    sparsifier = Sparsifier(detector, SparsityConfig(schedule=OneShot(), pattern=NM()))
    assert sparsifier.target_sparsities == (0.5,)
    assert sparsifier.allocate(0) == {"down.weight": 0.5, "tower.weight": 0.5}
    assert sparsifier.before_step(0, 10)
    assert not sparsifier.before_step(1, 10)
    assert not any((detector.get_submodule(name).weight == 0).any() for name in dense_names)
    assert [check_n_m(detector.get_submodule(name).weight, 2, 4) for name in ("down", "tower")] == [0, 0]
    assert sparsifier.measure().measured_sparsity_chosen == 0.5


def test_a_run_that_starts_inside_a_level_prunes_to_it(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    assert sparsifier.before_step(7, 9)
    assert sparsifier.level == 2
    assert not sparsifier.before_step(7, 9)


@pytest.mark.parametrize("step", [-1, 1.0, "1", None])
def test_steps_are_counted_from_zero(step, detector):
    sparsifier = Sparsifier(detector, SparsityConfig(schedule=LevelWise(levels=(0.3, 0.9))))
    for arguments, name in (((step, 10), "step"), ((0, step), "total_steps")):
        with pytest.raises(ConfigError, match=rf"^{name}: expected a whole number of at least \d, got "):
            sparsifier.before_step(*arguments)
    assert not sparsifier.masks
    sparsifier.before_step(torch.tensor(5), torch.tensor(10))
    assert type(sparsifier.state_dict()["level"]) is int


def test_state_round_trip_through_a_file(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.prune_(1)
    stream = io.BytesIO()
    torch.save({"model": detector.state_dict(), "sparsifier": sparsifier.state_dict()}, stream)
    stream.seek(0)
    content = torch.load(stream, weights_only=True)
    other = type(detector)()
    restored = Sparsifier(other, LEVELS)
    other.load_state_dict({name: value + 1 for name, value in content["model"].items()})  # not even zero
    restored.load_state_dict(content["sparsifier"])
    assert restored.level == 1
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in restored.masks.items())
    assert all(zero_bits(other.get_parameter(name))[~mask].all() for name, mask in restored.masks.items())
    restored.prune_(2)  # and goes on from there
    assert restored.measure().measured_sparsity == pytest.approx(0.9, abs=1e-4)


def test_state_before_the_first_level(detector):
    restored = Sparsifier(detector, LEVELS)
    restored.load_state_dict(Sparsifier(detector, LEVELS).state_dict())
    assert (restored.level, restored.masks) == (None, {})


def test_masks_of_another_choice_are_refused(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.prune_(0)
    fewer = SparsityConfig(schedule=LEVELS.schedule, targets=Targets(exclude=("down",)), scope="chosen")
    message = (
        "masks: expected masks of the chosen weights, got another shape or choice at 'down.weight': "
        "(32, 32, 3, 3) instead of none. "
        "Use the model and the sparsity block that the checkpoint was made with."
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Sparsifier(detector, fewer).load_state_dict(sparsifier.state_dict())


def test_copies_hold_the_zeros_and_nothing_else(detector):
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.prune_(2)
    train_step(detector, optimizer)
    stream = io.BytesIO()
    torch.save(detector, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(detector), torch.load(stream, weights_only=False)):
        assert all(torch.equal(value, twin.state_dict()[name]) for name, value in detector.state_dict().items())
        plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        train_step(twin, plain)
        assert (twin.tower.weight != 0).float().mean() > 0.5  # a copy is a plain model: it trains dense
    copy.deepcopy(optimizer)
    torch.save(optimizer, io.BytesIO())
    assert zero_bits(detector.tower.weight)[~sparsifier.masks["tower.weight"]].all()


def test_an_averaged_copy_can_be_pruned_alike(detector):
    sparsifier = Sparsifier(detector, LEVELS)
    averaged = torch.optim.swa_utils.AveragedModel(detector)
    sparsifier.prune_(2)
    sparsifier.apply_(averaged)
    assert all(zero_bits(averaged.module.get_parameter(name))[~mask].all() for name, mask in sparsifier.masks.items())


def test_wrapped_models_are_seen_through(detector):
    sparsifier = Sparsifier(torch.compile(nn.DataParallel(detector)), LEVELS)
    sparsifier.prune_(2)
    assert zero_bits(detector.tower.weight)[~sparsifier.masks["tower.weight"]].all()


def test_a_compiled_model_computes_with_the_zeros(detector):
    compiled = torch.compile(detector, backend="eager")
    images = torch.ones(1, 3, 8, 8)
    compiled(images)
    Sparsifier(detector, LEVELS).prune_(2)
    assert all(torch.equal(a, b) for a, b in zip(compiled(images), detector(images), strict=True))


def test_under_distributed_data_parallel(detector):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(detector, gradient_as_bucket_view=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        sparsifier = Sparsifier(model, LEVELS)
        sparsifier.attach(optimizer)
        sparsifier.prune_(2)
        for seed in range(2):
            train_step(model, optimizer, seed)
    finally:
        torch.distributed.destroy_process_group()
    assert [row.name for row in sparsifier.selection][3:5] == ["down.weight", "tower.weight"]
    mask = sparsifier.masks["tower.weight"]
    assert zero_bits(detector.tower.weight)[~mask].all()
    assert zero_bits(detector.tower.weight.grad)[~mask].all()
    assert detector.tower.weight.grad[mask].any()


def test_two_models_in_one_process(detector):
    other = copy.deepcopy(detector)
    pairs = []
    for model, sparsity in ((detector, 0.5), (other, 0.8)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(sparsity=sparsity)))
        sparsifier.attach(optimizer)
        sparsifier.prune_(0)
        pairs.append((model, optimizer, sparsifier, sparsity))
    for model, optimizer, sparsifier, sparsity in pairs:
        train_step(model, optimizer)
        assert sparsifier.measure().measured_sparsity == pytest.approx(sparsity, abs=1e-4)


def test_shared_weights_have_one_mask():
    first, second = nn.Linear(20, 20), nn.Linear(20, 20)
    second.weight = first.weight
    sparsifier = Sparsifier(nn.Sequential(first, second), SparsityConfig(schedule=OneShot(sparsity=0.5)))
    sparsifier.prune_(0)
    assert list(sparsifier.masks) == ["0.weight"]
    assert int((second.weight == 0).sum()) == 200


def test_frozen_weights_on_request_are_pruned_and_stay_so(detector):
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), targets=Targets(include_frozen=True))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.1)
    sparsifier = Sparsifier(detector, config)
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    train_step(detector, optimizer)
    assert zero_bits(detector.backbone.frozen.weight)[~sparsifier.masks["backbone.frozen.weight"]].all()
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, detector):
    detector.to(dtype)
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.prune_(1)
    assert detector.tower.weight.dtype == dtype
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.6, abs=1e-4)


def test_masks_follow_a_change_of_layout_and_dtype(detector):
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    detector.to(memory_format=torch.channels_last)
    train_step(detector, optimizer)
    sparsifier.prune_(1)
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.6, abs=1e-4)


def test_diverged_weights_are_refused_by_name(detector):
    detector.tower.weight.data[0] = torch.nan
    with pytest.raises(SparseDetError, match=r"tower.weight: expected finite weights, got inf or NaN"):
        Sparsifier(detector, LEVELS).prune_(0)


def test_no_memory_is_held_after_use(detector):
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    sparsifier = Sparsifier(detector, LEVELS)
    sparsifier.attach(optimizer)
    sparsifier.prune_(0)
    sparsifier.detach()
    watched = weakref.ref(sparsifier)
    del sparsifier
    gc.collect()
    assert watched() is None


def test_config_is_plain_data(detector):
    assert isinstance(Sparsifier(detector, LEVELS).config, ConfigModel)
