"""Batch norm statistics estimated anew."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import reestimate_batch_norm


def call(model, batch):
    return model(batch)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def reference(model, batches):
    """Torch's own cumulative average: reset, momentum None, training mode, dropout off."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
        elif isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {key: value for key, value in model.state_dict().items() if "running" in key}


@pytest.mark.parametrize("mode", [True, False])
def test_statistics_are_those_of_torchs_cumulative_average(model, mode):
    batches = [torch.randn(4, 3, 10, 10) * (index + 1) + index for index in range(3)]
    model.train(mode)
    model[1].momentum = 0.3
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    assert reestimate_batch_norm(model, batches, call) == ("1", "5")
    assert torch.equal(torch.rand(1), expected_draw)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(module.training == mode for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model[1].momentum == 0.3
    expected = reference(model, batches)
    for key, value in after.items():
        if key in expected:
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, before[key])  # num_batches_tracked too


@pytest.mark.parametrize(("mode", "expected"), [(True, ("5",)), (False, ("1", "5"))])
def test_frozen_norms_keep_their_statistics(model, mode, expected):
    class StaysFrozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    stays, foreign = StaysFrozen(5), FrozenBatchNorm2d(5)
    model.append(stays).append(foreign)
    model.train(mode)
    model[1].eval()  # in a model that is in training mode: by the training loop
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert reestimate_batch_norm(model, [torch.randn(2, 3, 9, 9)], call) == expected
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.running_{kind}" for name in expected for kind in ("mean", "var")}
    assert not model[1].training
    assert model[5].training == mode


def test_norms_of_other_kinds_and_calls(model):
    """Synchronised ones in one process, 1d ones, one without statistics, one that is called twice, one never."""
    torch.manual_seed(0)
    shared = nn.SyncBatchNorm(3)
    never = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": shared, "no": nn.BatchNorm2d(3, track_running_stats=False), "never": never}).eval()
    batch = torch.randn(4, 3, 5, 5)

    def run(model, batch):
        shared(batch)
        shared(5 * batch + 2)

    assert reestimate_batch_norm(model, [batch], run) == ("a",)
    means = batch.mean((0, 2, 3))
    variances = batch.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(shared.running_mean, (means + 5 * means + 2) / 2)
    torch.testing.assert_close(shared.running_var, (variances + 25 * variances) / 2)
    assert torch.equal(never.running_var, torch.ones(3))


def test_a_pruned_net_gives_outputs_like_the_dense_one_again(model):
    torch.manual_seed(0)
    batches = [torch.randn(8, 3, 12, 12) for _ in range(4)]
    reestimate_batch_norm(model, batches, call)
    model.eval()
    dense = model(batches[0]).std()
    model[0].weight.data *= 0.2
    model[0].bias.data += 1
    without = model(batches[0]).std()
    reestimate_batch_norm(model, batches, call)
    assert abs(model(batches[0]).std() / dense - 1) < 0.01 < abs(without / dense - 1)


def test_names_are_those_of_the_plain_model_and_lazy_norms_are_refused():
    model = nn.Sequential(nn.DataParallel(torch.compile(nn.Sequential(nn.BatchNorm1d(3)))), nn.BatchNorm1d(3))
    assert reestimate_batch_norm(torch.compile(model), [torch.randn(4, 3)], call) == ("0.0", "1")
    with pytest.raises(ConfigError, match=r"got the lazy layer '1\.weight'"):
        reestimate_batch_norm(nn.Sequential(nn.BatchNorm1d(3), nn.LazyBatchNorm1d()), [torch.randn(4, 3)], call)


@pytest.mark.parametrize(
    ("make", "batches", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 3)),
            [torch.ones(2, 3)],
            r"whose statistics may change, got none \(0 frozen\)",
        ),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Dropout()),
            [torch.ones(2, 3)],
            r"got none \(1 frozen\). Leave re-estimation out",
        ),
        (lambda: nn.Sequential(nn.BatchNorm1d(3)), [], "batches: expected at least one batch, got none"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3)),
            [torch.ones(2, 4)],
            "run: expected a function that serves every batch",
        ),
        (lambda: nn.Sequential(nn.BatchNorm1d(3)), [torch.ones(1, 3)], "more than one value for each channel of '0'"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3)),
            [torch.full((2, 3), torch.inf)],
            "expected finite inputs of '0', got inf or NaN",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(make, batches, message):
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        reestimate_batch_norm(model, batches, call)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
