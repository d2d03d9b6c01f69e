"""Every pattern with every allocation and schedule: it works, or is refused with the reason."""

import itertools

import pytest
import torch
from torch import nn

from sparsedet.common.errors import SparseDetError, UnreachableTargetError
from sparsedet.sparsity import (
    ALLOCATIONS,
    NM,
    NM2D,
    Activation,
    Block,
    Calibration,
    Channel,
    Cubic,
    Dynamic,
    Gradient,
    Lamp,
    LevelWise,
    Limit,
    Obc,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Targets,
    Uniform,
    Unstructured,
    check_n_m,
    measure_sensitivity,
)

FREE = [Unstructured(), Block(shape=(4, 1)), Block(shape=(2, 8)), Channel()]
FIXED = [NM(), NM(n=1, m=4), NM2D(), NM2D(method="greedy")]
IMAGES = (torch.zeros(1, 3, 16, 16),)
LEVELS = LevelWise(levels=(0.3, 0.6))


class Wide(nn.Module):
    """Wide enough for whole channels to meet a target within 1 %."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 64, 3, padding=1)
        self.tower = nn.Conv2d(64, 32, 1)
        self.pred = nn.Conv2d(32, 4, 1)

    def forward(self, images):
        return self.pred(self.tower(self.body(self.norm(self.stem(images)).relu()).relu()).relu())


@pytest.fixture
def wide():
    torch.manual_seed(0)
    return Wide()


def allocation_of(name, model):
    if name != "sensitivity":
        return ALLOCATIONS[name]()
    return ALLOCATIONS[name](curves=measure_sensitivity(model, lambda model: model(IMAGES[0]).mean().item()))


def blocks_of(pattern, keep):
    """The mask with a row for each block."""
    if pattern.type == "channel":
        return keep.flatten(1)
    height, width = pattern.shape
    parts = keep.reshape(keep.shape[0] // height, height, keep.shape[1] // width, width, -1)
    return parts.permute(0, 2, 4, 1, 3).reshape(-1, height * width)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("pattern", FREE, ids=lambda pattern: pattern.label)
def test_patterns_that_need_an_allocation(pattern, allocation, wide):
    config = SparsityConfig(schedule=LEVELS, pattern=pattern, allocation=allocation_of(allocation, wide))
    sparsifier = Sparsifier(wide, config, IMAGES)
    total = sum(row.numel for row in sparsifier.selection)
    before = None
    for level, target in enumerate((0.3, 0.6)):
        allocated = sparsifier.allocate(level)
        sparsifier.prune_(level)
        measured = {layer.name: layer.sparsity for layer in sparsifier.measure().layers if layer.chosen}
        assert measured == pytest.approx(allocated, abs=1e-9)
        largest = max(pattern.unit(row.shape) for row in sparsifier.selection if row.chosen)
        num_zeros = sum(int((~mask).sum()) for mask in sparsifier.masks.values())
        assert abs(num_zeros - round(target * total)) <= largest / 2
        for mask in sparsifier.masks.values():
            assert mask.any()
            if pattern.type != "unstructured":
                rows = blocks_of(pattern, mask)
                assert torch.equal(rows.any(1), rows.all(1))
        assert before is None or not any((mask & ~before[name]).any() for name, mask in sparsifier.masks.items())
        before = sparsifier.masks


SCHEDULES = [Cubic(sparsity=0.6, initial=0.3, last=1.0), Dynamic(sparsity=0.6, drop_fraction=0.6, stop=1.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.type)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("pattern", FREE, ids=lambda pattern: pattern.label)
def test_masks_that_change_while_training(pattern, allocation, schedule, wide):
    if schedule.grows and pattern.kills_channels:
        with pytest.raises(ValueError, match="expected pruned weights that stay so with the pattern channel"):
            SparsityConfig(schedule=schedule, pattern=pattern)
        return
    allocation = allocation_of(allocation, wide)
    config = SparsityConfig(schedule=schedule, pattern=pattern, allocation=allocation, update_interval=1)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(wide, config, IMAGES)
    sparsifier.attach(optimizer)
    found = []
    for step in range(4):
        sparsifier.before_step(step, 4)
        found.append({name: mask.clone() for name, mask in sparsifier.masks.items()})
        optimizer.zero_grad()
        (wide(torch.randn(2, 3, 16, 16)) - 1).square().mean().backward()
        optimizer.step()
        for mask in found[-1].values() if pattern.type != "unstructured" else ():
            rows = blocks_of(pattern, mask)
            assert torch.equal(rows.any(1), rows.all(1))
    num_pruned = sum(int((~mask).sum()) for mask in found[-1].values())
    assert num_pruned / sum(row.numel for row in sparsifier.selection) == pytest.approx(0.6, abs=0.01)
    for old, new in itertools.pairwise(found):
        assert any(not torch.equal(mask, new[name]) for name, mask in old.items())
        came_back = any((new[name] & ~mask).any() for name, mask in old.items())
        assert came_back == schedule.grows


@pytest.mark.parametrize("pattern", FIXED, ids=lambda pattern: pattern.label)
def test_patterns_that_fix_the_share(pattern, wide):
    for allocation in ALLOCATIONS:
        if allocation != "sensitivity":
            with pytest.raises(ValueError, match=f"allocation: expected null with the pattern {pattern.label}"):
                SparsityConfig(schedule=OneShot(), pattern=pattern, allocation=ALLOCATIONS[allocation]())
    with pytest.raises(ValueError, match=f"that the pattern {pattern.label} gives"):
        SparsityConfig(schedule=LEVELS, pattern=pattern)
    sparsifier = Sparsifier(wide, SparsityConfig(schedule=OneShot(), pattern=pattern))
    sparsifier.prune_(0)
    n, m = getattr(pattern, "n", 2), getattr(pattern, "m", 4)
    assert list(sparsifier.masks)
    for name, mask in sparsifier.masks.items():
        assert check_n_m(wide.get_parameter(name), n, m) == 0
        if pattern.type == "n_m_2d":
            assert check_n_m(wide.get_parameter(name).transpose(0, 1), n, m) == 0
        assert sparsifier.allocate(0)[name] == 1 - n / m
        if pattern.label != "2:4 2-D greedy":
            assert float(mask.float().mean()) == n / m


@pytest.mark.parametrize("pattern", [*FREE, *FIXED], ids=lambda pattern: pattern.label)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_constant_weights(pattern, dtype, wide):
    """All weights tie: the counts hold, and a second call changes nothing."""
    for parameter in wide.parameters():
        nn.init.constant_(parameter, 0.25)
    wide.to(dtype)
    schedule = OneShot(sparsity=0.5) if pattern.fixed_sparsity is None else OneShot()
    sparsifier = Sparsifier(
        wide, SparsityConfig(schedule=schedule, pattern=pattern), tuple(x.to(dtype) for x in IMAGES)
    )
    sparsifier.prune_(0)
    weight = wide.body.weight.detach().clone()
    sparsifier.prune_(0)
    assert torch.equal(wide.body.weight, weight)
    assert weight.dtype == dtype
    measured = sparsifier.measure()
    chosen = measured.measured_sparsity_chosen if pattern.fixed_sparsity else measured.measured_sparsity
    assert chosen == pytest.approx(1 - getattr(pattern, "n", 2) / getattr(pattern, "m", 4), abs=0.01)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("pattern", [*FREE, *FIXED], ids=lambda pattern: pattern.label)
def test_diverged_weights_are_refused_by_name(pattern, value, wide):
    schedule = OneShot(sparsity=0.5) if pattern.fixed_sparsity is None else OneShot()
    sparsifier = Sparsifier(wide, SparsityConfig(schedule=schedule, pattern=pattern), IMAGES)
    wide.body.weight.data[0, 0, 0, 0] = value
    before = wide.tower.weight.clone()
    with pytest.raises(SparseDetError, match=r"body.weight: expected finite weights, got inf or NaN"):
        sparsifier.prune_(0)
    assert torch.equal(wide.tower.weight, before)


@pytest.mark.parametrize("criterion", [Activation(), Gradient(), Obc()])
def test_diverged_weights_are_not_blamed_on_the_data(criterion):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data[0, 0] = torch.nan
    calibration = Calibration([torch.ones(2, 4)], lambda model, batch: model(batch), lambda m, b: m(b).square().mean())
    config = SparsityConfig(schedule=OneShot(sparsity=0.5), criterion=criterion)
    with pytest.raises(SparseDetError, match=r"0.weight: expected finite weights, got inf or NaN"):
        Sparsifier(model, config, calibration=calibration).prune_(0)
    if criterion != Obc():
        with pytest.raises(SparseDetError, match=r"0.weight: expected finite weights, got inf or NaN"):
            measure_sensitivity(model, lambda model: 1.0, criterion=criterion, calibration=calibration)


@pytest.mark.parametrize("pattern", FREE[1:], ids=lambda pattern: pattern.label)
def test_limits_macs_and_what_is_not_made_up_for(pattern, wide):
    def pruned(**fields):
        config = SparsityConfig(schedule=OneShot(sparsity=0.5), pattern=pattern, **fields)
        sparsifier = Sparsifier(wide, config, IMAGES)
        sparsifier.prune_(0)
        return sparsifier.measure()

    limited = pruned(limits={"tower": Limit(min=0.2, max=0.3)}, scope="chosen")
    shares = {layer.name: layer.sparsity for layer in limited.layers}
    assert 0.2 <= shares["tower.weight"] <= 0.3
    assert limited.measured_sparsity_chosen == pytest.approx(0.5, abs=0.01)

    wide = wide.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    macs = pruned(budget="macs")
    assert macs.macs_kept == pytest.approx(0.5, abs=0.01)


def test_weights_that_blocks_do_not_fill_take_part_where_nothing_is_made_up_for(wide):
    """`compensate: false` also scores what is left out; no block is asked of it."""
    config = SparsityConfig(
        schedule=OneShot(sparsity=0.5), pattern=Block(shape=(1, 16)), allocation=Uniform(), compensate=False
    )
    sparsifier = Sparsifier(wide, config)
    sparsifier.prune_(0)
    measured = sparsifier.measure()
    assert not next(layer for layer in measured.layers if layer.name == "stem.weight").chosen
    assert measured.measured_sparsity_chosen == pytest.approx(0.5, abs=0.005)
    assert measured.measured_sparsity < 0.49


@pytest.mark.parametrize(("sparsity", "expected"), [(0.2, None), (0.25, 0.25), (0.76, None)])
def test_a_target_that_channels_cannot_meet_is_refused(sparsity, expected):
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Conv2d(4, 1, 1))
    config = SparsityConfig(
        schedule=OneShot(sparsity=sparsity), pattern=Channel(), allocation=Lamp(), targets=Targets(), scope="chosen"
    )
    inputs = (torch.zeros(1, 8, 3, 3),)
    if expected is None:
        with pytest.raises(UnreachableTargetError):
            Sparsifier(model, config, inputs).prune_(0)
        return
    sparsifier = Sparsifier(model, config, inputs)
    sparsifier.prune_(0)
    assert sparsifier.measure().measured_sparsity_chosen == expected


def test_every_pattern_and_allocation_is_here():
    assert {pattern.type for pattern in (*FREE, *FIXED)} == {"unstructured", "n_m", "n_m_2d", "block", "channel"}
    assert len(list(itertools.product(FREE, ALLOCATIONS))) >= 20
