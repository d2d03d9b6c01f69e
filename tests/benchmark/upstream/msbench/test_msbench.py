"""Scripts as MSBench's documentation has them, with the one import changed."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench import (
    SCHEDULERS,
    AmbaLevelPruneScheduler,
    AmpereScheduler,
    BaseScheduler,
    build_sparse_scheduler,
)
from sparsedet.common.errors import ConfigError


def test_a_script_for_the_level_wise_scheduler(make_model, level_wise, train_step, zeros_of, folder):
    """msbench_measured §3: of eight iterations levels start at 0 and 4, files are written after 3 and 7."""
    config = level_wise()
    model = make_model()

    sparse_scheduler = build_sparse_scheduler(config)
    model = sparse_scheduler.prepare_sparse_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    sparse_scheduler.set_lr_scheduler(lr_scheduler)
    rates, zeros, files = [], [], []
    for iteration in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        train_step(model, optimizer, iteration)
        sparse_scheduler.prune_model(model, iteration)
        lr_scheduler.step()
        zeros.append(zeros_of(model))
        files.append(sorted(path.name for path in (folder / "model_save_path").glob("*")))
    sparse_scheduler.export_sparse_model(model)

    # 0.3 and 0.6 of 4608, 1024 and 320, which are 1785.6 and 3571.2 in all
    assert zeros[:4] == [{"0.weight": 1383, "3.weight": 308, "6.weight": 96}] * 4
    assert zeros[4:] == [{"0.weight": 2765, "3.weight": 615, "6.weight": 192}] * 4
    first, second = "global_sparse_rate_0.3.pth.tar", "global_sparse_rate_0.6.pth.tar"
    assert files == [[]] * 3 + [[first]] * 4 + [[first, second]]
    # the step that begins a level is done at the old rate, and the next one at position 1 (msbench_semantics §6.1)
    assert rates == [0.1, 0.05, 0.025, 0.0125, 0.00625, 0.05, 0.025, 0.0125]
    assert sparse_scheduler.compute_sparse_rate(model) == (2765 + 615 + 192) / 5952
    assert config == level_wise()


def test_a_script_for_the_ampere_scheduler(make_model, train_step, zeros_of):
    config = {"scheduler": {"type": "AmpereScheduler", "kwargs": {"mask_calculator": "m4n2_1d", "verbosity": 0}}}
    model = make_model()

    sparse_scheduler = build_sparse_scheduler(config)
    model = sparse_scheduler.prepare_sparse_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    dense = model[0].weight.detach().clone()
    sparse_scheduler.init_optimizer(optimizer)
    at_once = model[0].weight.detach().clone()
    for iteration in range(3):
        train_step(model, optimizer, iteration)
        sparse_scheduler.prune_model(model, iteration)
    sparse_scheduler.export_sparse_model(model)

    groups = dense.abs().unflatten(1, (4, 4)).movedim(2, -1)  # by four input channels
    kept = (groups >= groups.sort(dim=-1).values[..., 2:3]).movedim(-1, 2).flatten(1, 2)
    assert torch.equal(at_once, dense * kept)
    assert torch.equal(model[0].weight != 0, kept)
    assert zeros_of(model) == {"0.weight": 2304, "3.weight": 512, "6.weight": 0}  # 10 outputs are no multiple of 8
    assert sparse_scheduler.compute_sparse_rate(model) == 2816 / 5952


def test_a_script_for_the_base_scheduler(make_model, train_step, zeros_of):
    sparse_scheduler = build_sparse_scheduler(
        {
            "mask_generator": {"type": "NormalMaskGenerator", "kwargs": {"structured": False}},
            "fake_sparse": {"type": "DefaultFakeSparse"},
            "scheduler": {"type": "BaseScheduler", "kwargs": {"no_prune_layer": "6", "no_prune_keyword": ""}},
        }
    )
    model = sparse_scheduler.prepare_sparse_model(make_model())
    assert sparse_scheduler.compute_sparse_rate(model) == 0.0
    sparse_scheduler.update_sparsity_per_layer(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for iteration in range(3):
        train_step(model, optimizer, iteration)
        sparse_scheduler.prune_model(model, iteration)
    assert zeros_of(model) == {"0.weight": 2304, "3.weight": 512, "6.weight": 0}
    assert sparse_scheduler.compute_sparse_rate(model) == 2816 / 5952


def test_every_name_builds_its_class():
    for name, kind in SCHEDULERS.items():
        assert type(build_sparse_scheduler({"scheduler": {"type": name}})) is kind
    assert set(SCHEDULERS.values()) == {BaseScheduler, AmbaLevelPruneScheduler, AmpereScheduler}
    assert type(build_sparse_scheduler({})) is BaseScheduler


def test_two_models_in_one_process(make_model, zeros_of):
    """ASP keeps its state on the class, and so refuses the second model."""
    models = [make_model(), make_model()]
    for model, calculator in zip(models, ("m4n2_1d", "m4n2_2d_best"), strict=True):
        scheduler = build_sparse_scheduler(
            {"scheduler": {"type": "AmpereScheduler", "kwargs": {"mask_calculator": calculator}}}
        )
        scheduler.prepare_sparse_model(model)
        scheduler.init_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    assert zeros_of(models[0]) == zeros_of(models[1])
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


def test_a_model_keeps_its_classes_its_names_and_what_is_no_module(make_model, level_wise):
    class Strange(nn.Conv2d):
        def forward(self, inputs):
            if inputs.sum() > 0:  # not to be traced
                return super().forward(inputs)
            return super().forward(-inputs)

    model = make_model()
    model[3] = Strange(32, 32, 1).eval()
    model.out_channels = 10
    keys = list(model.state_dict())
    scheduler = build_sparse_scheduler(level_wise(default_input_shape=[1, 16, 8, 8], prun_algo=1))
    prepared = scheduler.prepare_sparse_model(model)
    scheduler.prune_model(prepared, 0)
    assert prepared is model
    assert list(model.state_dict()) == keys
    assert model.out_channels == 10
    assert type(model[3]) is Strange
    assert not model[3].training
    assert model.training
    assert (model[3].weight == 0).sum() > 0


def test_a_configuration_stays_what_it_was(level_wise):
    config = {"mask_generator": {"type": "NormalMaskGenerator"}, "scheduler": {"type": "AmbaLevelPruneScheduler"}}
    before = deepcopy(config)
    build_sparse_scheduler(config)
    assert config == before


def test_what_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match=r"expected a mapping with the key 'scheduler', got str\."):
        build_sparse_scheduler("sparsity.yaml")
