import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench import build_sparse_scheduler
from sparsedet.common.errors import ConfigError, TargetMatchError

AMPERE = {"scheduler": {"type": "AmpereScheduler"}}


@pytest.fixture
def ampere(make_model):
    """Scheduler and prepared model."""
    scheduler = build_sparse_scheduler(AMPERE)
    return scheduler, scheduler.prepare_sparse_model(make_model())


@pytest.fixture
def base(make_model):
    """Scheduler and prepared model."""
    scheduler = build_sparse_scheduler({})
    return scheduler, scheduler.prepare_sparse_model(make_model())


def test_an_lr_scheduler_built_before_does_not_warn(ampere, train_step):
    """ASP replaces optimizer.step, of which LR schedulers then complain; warnings are errors here."""
    scheduler, model = ampere
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scheduler.init_optimizer(optimizer)
    for iteration in range(2):
        train_step(model, optimizer, iteration)
        lr_scheduler.step()


def test_masks_follow_weights_of_another_type(ampere, zeros_of):
    """ASP goes on masking the old tensors."""
    scheduler, model = ampere
    scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler.init_optimizer(optimizer)
    before = zeros_of(model)
    model(torch.randn(2, 16, 8, 8, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert zeros_of(model) == before == {"0.weight": 2304, "3.weight": 512, "6.weight": 0}


def test_layers_of_other_types_and_shapes_are_left_out(zeros_of):
    """MSBench's ASP checks no shapes of bf16 weights, and groups 1-d convolutions along the kernel."""
    model = nn.ModuleList([nn.Linear(10, 8), nn.Linear(16, 10), nn.Linear(16, 8), nn.Conv1d(16, 8, 3)]).bfloat16()
    scheduler = build_sparse_scheduler(AMPERE)
    scheduler.prepare_sparse_model(model)
    scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    assert zeros_of(model) == {"0.weight": 0, "1.weight": 0, "2.weight": 64, "3.weight": 192}
    groups = (model[3].weight != 0).unflatten(1, (4, 4)).sum(2)
    assert groups.unique().tolist() == [2]


def test_a_second_optimizer_does_not_change_the_masks(ampere):
    scheduler, model = ampere
    scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model[0].weight.detach().clone()
    scheduler.init_optimizer(torch.optim.Adam(model.parameters(), lr=0.1))
    assert torch.equal(model[0].weight, before)


def test_the_model_comes_before_the_optimizer(make_model):
    scheduler = build_sparse_scheduler(AMPERE)
    for call in (
        lambda: scheduler.init_optimizer(torch.optim.SGD(make_model().parameters(), lr=0.1)),
        lambda: scheduler.compute_sparse_rate(),
        lambda: scheduler.prune_model(make_model(), 0),
        lambda: scheduler.export_sparse_model(make_model()),
    ):
        with pytest.raises(ConfigError, match=r"Call prepare_sparse_model\(model\) first"):
            call()


def test_an_optimizer_of_another_model_is_refused(base, make_model):
    scheduler, _ = base
    with pytest.raises(ConfigError, match="optimizer: expected an optimizer of the pruned model"):
        scheduler.init_optimizer(torch.optim.SGD(make_model().parameters(), lr=0.1))


def test_one_model_for_each_scheduler(base, make_model):
    scheduler, model = base
    assert scheduler.prepare_sparse_model(model) is model
    with pytest.raises(ConfigError, match="prepare_sparse_model: expected the model that was prepared before"):
        scheduler.prepare_sparse_model(make_model())
    with pytest.raises(ConfigError, match="model: expected the model that was prepared, got another one"):
        scheduler.prune_model(make_model(), 0)


def test_a_model_that_was_refused_may_be_followed_by_another(make_model):
    scheduler = build_sparse_scheduler({"scheduler": {"kwargs": {"no_prune_layer": "6"}}})
    with pytest.raises(TargetMatchError):
        scheduler.prepare_sparse_model(nn.Linear(2, 2))
    scheduler.prepare_sparse_model(make_model())


def test_copies_are_measured_and_made_sparse(base, make_model):
    scheduler, model = base
    scheduler.update_sparsity_per_layer(model, 0.5)
    dense = make_model()
    assert scheduler.compute_sparse_rate(dense) == 0.0
    scheduler.export_sparse_model(dense)
    assert scheduler.compute_sparse_rate(dense) == 0.5
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert scheduler.compute_sparse_rate(averaged) == 0.5
    assert scheduler.compute_sparse_rate(copy.deepcopy(model)) == 0.5


def test_exporting_changes_nothing(base, train_step):
    scheduler, model = base
    scheduler.update_sparsity_per_layer(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler.init_optimizer(optimizer)
    before = copy.deepcopy(model.state_dict())
    scheduler.export_sparse_model(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train_step(model, optimizer, 0)
    assert scheduler.compute_sparse_rate(model) == 0.5


def test_the_sparsity_may_rise_and_masks_grow(base):
    scheduler, model = base
    scheduler.update_sparsity_per_layer(model, 0.25)
    first = model[0].weight == 0
    with torch.no_grad():
        model[0].weight[~first] = 0.01  # by magnitude alone others could go now
    scheduler.update_sparsity_per_layer(model, 0.5)
    second = model[0].weight == 0
    assert first.sum() == 1152
    assert second.sum() == 2304
    assert (second & first).sum() == 1152


@pytest.mark.parametrize("sparsity", [0.2, 1.0, 50, -0.1])
def test_a_sparsity_that_falls_or_is_no_share_is_refused(base, sparsity):
    scheduler, model = base
    scheduler.update_sparsity_per_layer(model, 0.25)
    with pytest.raises(ConfigError, match=r"sparsity: expected a share of at least 0\.25 .* and below 1, got"):
        scheduler.update_sparsity_per_layer(model, sparsity)


def test_ampere_has_one_sparsity(ampere):
    scheduler, model = ampere
    with pytest.raises(ConfigError, match=r"whose masks are 2:4, got 0\.5"):
        scheduler.update_sparsity_per_layer(model, 0.5)


def test_permutation_needs_an_input_and_says_how_to_give_it(make_model):
    kwargs = {"allow_permutation": True}
    scheduler = build_sparse_scheduler({"scheduler": {"type": "AmpereScheduler", "kwargs": kwargs}})
    with pytest.raises(
        ConfigError, match=r"allow_permutation: expected false.*Call sparsedet\.sparsity\.permute_channels"
    ):
        scheduler.prepare_sparse_model(make_model())


@pytest.mark.slow
def test_export_to_onnx(ampere, folder):
    onnx = pytest.importorskip("onnx")
    scheduler, model = ampere
    scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model.state_dict())
    assert scheduler.export_sparse_onnx(model, torch.zeros(1, 16, 8, 8), "sparse") == Path("sparse.onnx")
    assert scheduler.export_sparse_onnx(nn.DataParallel(model), (torch.zeros(1, 16, 8, 8),), "two.onnx") == Path(
        "two.onnx"
    )
    for name in ("sparse.onnx", "two.onnx"):
        weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(name).graph.initializer]
        assert sorted(int((w == 0).sum()) for w in weights if w.size in (4608, 1024)) == [512, 2304]
    assert sorted(path.name for path in folder.iterdir()) == ["sparse.onnx", "two.onnx"]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
