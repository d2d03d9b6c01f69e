"""AmbaLevelPruneScheduler, and what is right here of what msbench_semantics §12.3 and §12.4 list as wrong there."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench import build_sparse_scheduler
from sparsedet.common.errors import (
    CheckpointError,
    ConfigError,
    SparseDetError,
    TargetMatchError,
    UnreachableTargetError,
)

FIRST, SECOND = "model_save_path/global_sparse_rate_0.3.pth.tar", "model_save_path/global_sparse_rate_0.6.pth.tar"


class Wrapper(nn.Module):
    """Stands for DistributedDataParallel."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module(batch)


def load(path):
    return torch.load(path, weights_only=True)


def masks_of(model):
    return {name: value.detach() != 0 for name, value in model.named_parameters() if value.ndim > 1}


@pytest.fixture
def begin(make_model, level_wise):
    """Function of arguments of the scheduler: scheduler, model, optimizer and LR scheduler of a script."""

    def run(optimizer_class=torch.optim.SGD, model=None, **kwargs):
        model = model or make_model()
        scheduler = build_sparse_scheduler(level_wise(**kwargs))
        scheduler.prepare_sparse_model(model)
        options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
        optimizer = optimizer_class(model.parameters(), lr=0.05, weight_decay=1e-2, **options)
        lr_scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], 0.5),
            ],
            milestones=[2],
        )
        scheduler.set_lr_scheduler(lr_scheduler)
        return scheduler, model, optimizer, lr_scheduler

    return run


@pytest.fixture
def go_on(train_step):
    """Function of what `begin` returned that runs iterations of a script."""

    def run(parts, iterations, seen=None):
        scheduler, model, optimizer, lr_scheduler = parts
        for iteration in iterations:
            train_step(model, optimizer, iteration)
            scheduler.prune_model(model, iteration)
            if seen is not None:
                seen.append(masks_of(model))
            lr_scheduler.step()
        return parts

    return run


# --- levels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_masks_are_fixed_within_a_level_and_contain_those_before(begin, go_on, optimizer_class):
    seen = []
    go_on(begin(optimizer_class, total_iters=9, sparsity_table=[30, 50, 70]), range(9), seen)
    for iteration in range(1, 9):
        for name, mask in seen[iteration].items():
            if iteration % 3:
                assert torch.equal(mask, seen[iteration - 1][name])
            else:
                assert not (mask & ~seen[iteration - 1][name]).any()
                assert (~mask).sum() > (~seen[iteration - 1][name]).sum()


def test_masks_contain_those_before_whatever_other_zeros_there_are(begin):
    scheduler, model, *_ = begin()
    scheduler.prune_model(model, 0)
    first = {name: mask.clone() for name, mask in scheduler.state_dict()["masks"].items()}
    with torch.no_grad():
        model[0].weight.zero_()
    scheduler.prune_model(model, 4)
    for name, mask in scheduler.state_dict()["masks"].items():
        assert not (mask & ~first[name]).any()
        assert mask.sum() < first[name].sum()


def test_levels_leave_nothing_behind(begin, go_on):
    _, _, optimizer, _ = go_on(begin(total_iters=9, sparsity_table=[30, 50, 70]), range(9))
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_levels_start_at_whole_parts_of_the_iterations(begin, go_on):
    """``int(i * 8 // 3)`` is 0, 2, 5."""
    seen = []
    go_on(begin(sparsity_table=[30, 50, 70]), range(8), seen)
    counts = [int((~masks["0.weight"]).sum()) for masks in seen]
    assert [counts.index(count) for count in sorted(set(counts))] == [0, 2, 5]


def test_momentum_of_pruned_weights_is_cleared(begin, go_on):
    _, model, optimizer, _ = go_on(begin(), range(5))
    for name, mask in masks_of(model).items():
        momentum = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
        assert not momentum[~mask].any()
        assert momentum[mask].any()


def test_the_learning_rate_starts_again_also_after_a_warm_up(begin, train_step):
    scheduler, model, optimizer, lr_scheduler = begin()
    rates = []
    for iteration in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        train_step(model, optimizer, iteration)
        scheduler.prune_model(model, iteration)
        lr_scheduler.step()
    # warm-up over two steps, the full rate for one, half of it; the step that begins a level still has the old rate
    assert rates == pytest.approx([0.005, 0.0275, 0.05, 0.025, 0.025, 0.0275, 0.05, 0.025])


def test_without_an_optimizer_each_call_puts_the_zeros_back(make_model, level_wise, train_step, zeros_of):
    class Custom:
        def __init__(self):
            self.calls = []

        def step(self, this_iter=None):
            self.calls.append(this_iter)

    scheduler, model, custom = build_sparse_scheduler(level_wise()), make_model(), Custom()
    scheduler.prepare_sparse_model(model)
    scheduler.set_lr_scheduler(custom)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for iteration in range(8):
        train_step(model, optimizer, iteration)
        assert iteration == 0 or zeros_of(model)["0.weight"] < 100
        scheduler.prune_model(model, iteration)
        assert zeros_of(model)["0.weight"] == (1383 if iteration < 4 else 2765)
    assert custom.calls == [0]


def test_calls_may_be_missed(begin, train_step, zeros_of):
    scheduler, model, optimizer, lr_scheduler = begin()
    for iteration in range(0, 8, 3):
        train_step(model, optimizer, iteration)
        scheduler.prune_model(model, iteration)
        lr_scheduler.step()
    assert zeros_of(model)["0.weight"] == 2765
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0275)


def test_iterations_may_be_given_later(begin):
    scheduler, model, *_ = begin(total_iters=None)
    with pytest.raises(ConfigError, match="total_iters: expected the number of iterations, got None"):
        scheduler.prune_model(model, 0)
    scheduler.total_iters = 8
    scheduler.prune_model(model, 4)
    assert scheduler.compute_sparse_rate(model) == (2765 + 615 + 192) / 5952


def test_too_few_iterations_and_going_back_are_refused(begin):
    scheduler, model, *_ = begin(total_iters=1)
    with pytest.raises(ConfigError, match="total_steps: expected at least one step for each of the 2 levels, got 1"):
        scheduler.prune_model(model, 0)
    scheduler, model, *_ = begin()
    scheduler.prune_model(model, 5)
    with pytest.raises(ConfigError, match="iteration: expected 4 or later, since level 1 has begun, got 3"):
        scheduler.prune_model(model, 3)
    with pytest.raises(ConfigError, match="expected 4 or later"):
        scheduler.prune_model(model, -1)
    scheduler.prune_model(model, 8)  # after the last one nothing begins


# --- which layers, and how much ------------------------------------------------------------------------------


def test_names_have_blanks_stripped_and_typos_are_errors(begin, go_on, zeros_of):
    _, model, *_ = go_on(begin(no_prune_layer="0, 6", sparsity_table=[50], total_iters=2), range(1))
    assert zeros_of(model) == {"0.weight": 0, "3.weight": 512, "6.weight": 0}
    with pytest.raises(TargetMatchError, match="got 'conv1', which matches none of 3"):
        begin(no_prune_layer="0, conv1")
    with pytest.raises(TargetMatchError, match="which matches none of 3"):
        begin(no_prune_keyword="neck")


@pytest.mark.parametrize("layer", ["0", "module.0"])
def test_a_layer_that_is_left_out_stays_dense_in_a_wrapper(make_model, level_wise, train_step, zeros_of, layer):
    """MSBench prunes it to 60 % there."""
    model = make_model()
    scheduler = build_sparse_scheduler(level_wise(no_prune_layer=layer))
    scheduler.prepare_sparse_model(model)
    wrapped = Wrapper(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    scheduler.set_lr_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 9))
    for iteration in range(8):
        train_step(wrapped, optimizer, iteration)
        scheduler.prune_model(wrapped, iteration)
    scheduler.export_sparse_model(wrapped)
    assert zeros_of(model) == {"0.weight": 0, "3.weight": 615, "6.weight": 192}
    assert set(load(SECOND)["model"]) == set(model.state_dict())
    assert scheduler.compute_sparse_rate(wrapped) == 807 / 5952


def test_a_model_of_torchs_wrappers(make_model, level_wise, zeros_of):
    wrapped = nn.DataParallel(make_model())
    scheduler = build_sparse_scheduler(level_wise(no_prune_layer="module.0"))
    assert scheduler.prepare_sparse_model(wrapped) is wrapped
    scheduler.prune_model(wrapped, 0)
    assert zeros_of(wrapped) == {"module.0.weight": 0, "module.3.weight": 308, "module.6.weight": 96}


def test_what_is_left_out_is_not_made_up_for_by_prun_algo_0(level_wise):
    """30 % asked and a layer with 86 % of the weights left out are 4.2 % in all, and that is what is said."""
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 40), nn.Linear(40, 77))
    scheduler = build_sparse_scheduler(level_wise(no_prune_layer="2", total_iters=2, sparsity_table=[30]))
    scheduler.prepare_sparse_model(model)
    scheduler.prune_model(model, 0)
    scheduler.prune_model(model, 1)
    assert scheduler.compute_sparse_rate(model) == 150 / 3580
    content = load(FIRST)
    assert content["target_sparsity"] == 0.3
    assert content["measured_sparsity"] == 150 / 3580


def test_the_energy_rule_reaches_its_target_exactly(begin, go_on):
    """MSBench accepts 1.5 points on either side."""
    scheduler, model, *_ = go_on(begin(prun_algo=1, default_input_shape=[1, 16, 8, 8]), range(8))
    assert scheduler.compute_sparse_rate(model) == round(0.6 * 5952) / 5952
    assert load(FIRST)["measured_sparsity"] == round(0.3 * 5952) / 5952


@pytest.mark.parametrize(
    "given",
    [torch.zeros(2, 16, 8, 8), (torch.zeros(2, 16, 8, 8),), {"input": torch.zeros(2, 16, 8, 8)}],
    ids=["tensor", "tuple", "dict"],
)
def test_example_inputs_of_every_form(begin, go_on, given):
    scheduler, model, *_ = go_on(begin(prun_algo=1, default_input_custom=given), range(1))
    assert scheduler.compute_sparse_rate(model) == round(0.3 * 5952) / 5952


def test_a_model_that_takes_a_batch_as_a_dict(level_wise):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, batch):
            return {"features": self.conv(batch["image"])}

    model = Detector()
    batch = {"image": torch.zeros(2, 3, 8, 8), "label": [1, 2]}
    scheduler = build_sparse_scheduler(level_wise(prun_algo=1, default_input_custom=batch))
    scheduler.prepare_sparse_model(model)
    scheduler.prune_model(model, 0)
    assert scheduler.compute_sparse_rate(model) == 65 / 216


def test_the_energy_rule_without_an_input_is_an_error_and_no_exit(begin):
    with pytest.raises(ConfigError, match="expected default_input_shape or default_input_custom, which the allocation"):
        begin(prun_algo=1)


def test_a_target_that_cannot_be_reached_is_an_error_with_the_greatest_that_can(begin):
    """MSBench searches without end."""
    with pytest.raises(UnreachableTargetError, match=r"expected at most 0\.2232 .*, got 0\.3"):
        begin(prun_algo=1, default_input_shape=[1, 16, 8, 8], no_prune_layer="0")  # 1013 of 1024 and 316 of 320 of 5952


def test_models_without_convolutions(level_wise):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    scheduler = build_sparse_scheduler(level_wise(prun_algo=1, default_input_custom=torch.zeros(2, 3, 8)))
    scheduler.prepare_sparse_model(model)
    scheduler.prune_model(model, 0)
    assert scheduler.compute_sparse_rate(model) == round(0.3 * 512) / 512


def test_a_shared_head_and_equal_layers_count_once_each(level_wise):
    """MSBench tells layers by the values of their weights and counts calls."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, batch):
            return [self.head(self.first(batch)), self.head(self.second(batch))]

    model = Heads()
    scheduler = build_sparse_scheduler(level_wise())
    scheduler.prepare_sparse_model(model)
    scheduler.prune_model(model, 0)
    assert scheduler.compute_sparse_rate(model) == 90 / 300
    assert set(ast.literal_eval(Path("sparse_analysis/dict_prun_table.txt").read_text())) == {"first", "second", "head"}


def test_exact_counts_of_ties_and_of_tiny_layers(level_wise):
    """MSBench prunes all ten of n = 10 at 90 %, every tie at the threshold, and constant tensors whole."""
    model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 50, bias=False), nn.Linear(50, 2, bias=False))
    nn.init.constant_(model[1].weight, 0.5)
    model[2].weight.data = torch.arange(100.0).reshape(2, 50) % 7 - 3
    scheduler = build_sparse_scheduler(level_wise(sparsity_table=[90], total_iters=1))
    scheduler.prepare_sparse_model(model)
    scheduler.prune_model(model, 0)
    assert [int((layer.weight == 0).sum()) for layer in model] == [9, 90, 90]


def test_weights_that_are_no_numbers_are_errors(begin):
    scheduler, model, *_ = begin()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SparseDetError, match=r"0\.weight"):
        scheduler.prune_model(model, 0)
    assert not (model[3].weight == 0).any()


# --- tables ------------------------------------------------------------------------------------------------


def test_a_run_writes_its_tables_and_another_takes_its_shares_from_them(begin, go_on, zeros_of):
    arguments = {"prun_algo": 1, "default_input_shape": [1, 16, 8, 8], "output_dir": "tables"}
    _, first, *_ = go_on(begin(**arguments), range(8))
    torch.manual_seed(1)
    other = nn.Sequential(*(type(layer)(*args) for layer, args in zip(first, _ARGUMENTS, strict=True)))
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    _, second, *_ = go_on(begin(model=other, do_sparse_analysis=False, output_dir="tables", prun_algo=1), range(8))
    assert zeros_of(second) == zeros_of(first)


_ARGUMENTS = [(16, 32, 3, 1, 1), (32,), (), (32, 32, 1), (1,), (), (32, 10)]


def test_shares_come_from_a_table_of_msbench_with_names_of_a_wrapper(begin, go_on, zeros_of, folder):
    (folder / "dict_prun_table.txt").write_text(
        "{'module.0': [0.1, 0.25, 0.5], 'module.3': [0.0, 0.5, 0.75], 'module.6': [0.0, 0.0, 0.0]}"
    )
    (folder / "desrie_prun_table.txt").write_text("a\n[0, 1, 2]\n[0.1, 0.3, 0.5]\nb\n[1, 2]\n[0.3, 0.5]\n[20, 40]\n")
    seen = []
    parts = begin(do_sparse_analysis=False, output_dir=".", sparsity_table=[30, 50])
    _, model, *_ = go_on(parts, range(8), seen)
    assert [int((~seen[0][name]).sum()) for name in ("0.weight", "3.weight", "6.weight")] == [1152, 512, 0]
    assert zeros_of(model) == {"0.weight": 2304, "3.weight": 768, "6.weight": 0}
    assert load(FIRST)["measured_sparsity"] == 1664 / 5952


def test_a_table_of_another_model_is_an_error(begin, go_on, folder):
    go_on(begin(), range(1))
    with pytest.raises(ConfigError, match="'0', which is none of its 1"):
        begin(
            model=nn.Sequential(nn.Identity(), nn.Linear(4, 4)), do_sparse_analysis=False, output_dir="sparse_analysis"
        )


def test_tables_that_are_not_there_are_made(begin, go_on, folder):
    go_on(begin(do_sparse_analysis=False), range(1))
    ratios = ast.literal_eval((folder / "sparse_analysis" / "dict_prun_table.txt").read_text())
    assert ratios["0"] == [1383 / 4608, 2765 / 4608]


# --- level files -----------------------------------------------------------------------------------------------


def test_a_level_file_loads_strictly_into_the_plain_model(begin, go_on, make_model, zeros_of):
    _, model, *_ = go_on(begin(), range(8))
    for path, index, zeros in ((FIRST, 0, 1383), (SECOND, 1, 2765)):
        content = load(path)
        plain = make_model()
        plain.load_state_dict(content["model"], strict=True)
        assert zeros_of(plain)["0.weight"] == zeros
        assert content["prune_step"] == index
        assert content["desire_index_table"] == [0, 1]
        assert content["sparse_matrix"]["0"] == [1383 / 4608, 2765 / 4608]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())


def test_writing_a_level_file_changes_nothing(begin, go_on, train_step, monkeypatch):
    """The same run with and without files ends with the same weights and rates."""
    _, first, *_ = go_on(begin(), range(8))
    scheduler, second, optimizer, lr_scheduler = begin()
    monkeypatch.setattr(scheduler, "_save_level", lambda iteration: None)
    go_on((scheduler, second, optimizer, lr_scheduler), range(8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_resuming_from_a_level_file_is_exact(begin, go_on, train_step):
    _, expected, expected_optimizer, _ = go_on(begin(sparsity_table=[30, 60, 90], total_iters=12), range(12))
    scheduler, model, optimizer, lr_scheduler = begin(sparsity_table=[30, 60, 90], total_iters=12)
    content = load(SECOND)
    assert content["iteration"] == 7
    with torch.no_grad():
        model[0].weight.zero_()  # everything comes from the file
    model.load_state_dict(content["model"])
    scheduler.load_state_dict(content["scheduler"])
    optimizer.load_state_dict(content["optimizer"])
    lr_scheduler.load_state_dict(content["lr_scheduler"])
    lr_scheduler.step()
    go_on((scheduler, model, optimizer, lr_scheduler), range(8, 12))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert optimizer.param_groups[0]["lr"] == expected_optimizer.param_groups[0]["lr"]


def test_resuming_in_the_middle_of_a_level_keeps_rate_and_masks(begin, go_on):
    parts = go_on(begin(), range(6))
    scheduler, model, optimizer, lr_scheduler = parts
    state = {
        "s": scheduler.state_dict(),
        "m": model.state_dict(),
        "o": optimizer.state_dict(),
        "l": lr_scheduler.state_dict(),
    }
    torch.save(state, "mine.pt")
    go_on(parts, range(6, 8))
    state = load("mine.pt")
    scheduler, again, optimizer, lr_scheduler = begin()
    again.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    lr_scheduler.load_state_dict(state["l"])
    scheduler.load_state_dict(state["s"])
    go_on((scheduler, again, optimizer, lr_scheduler), range(6, 8))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_script_that_resumes_as_with_msbench_gets_its_level_and_keeps_its_rate(begin, go_on, zeros_of):
    """Model and LR scheduler are loaded by the script; the level follows from the iteration (semantics §6.8)."""
    _, model, optimizer, lr_scheduler = go_on(begin(), range(6))
    scheduler, again, other, rates = begin(do_sparse_analysis=False)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    rates.load_state_dict(lr_scheduler.state_dict())
    rate = other.param_groups[0]["lr"]
    scheduler.prune_model(again, 6)
    assert zeros_of(again) == zeros_of(model)
    assert other.param_groups[0]["lr"] == rate == 0.05


def test_states_that_do_not_fit_are_refused(begin, go_on, make_model, level_wise):
    scheduler, *_ = go_on(begin(), range(1))
    state = scheduler.state_dict()
    for wrong in ({"level": 0}, None, [1]):
        with pytest.raises(CheckpointError, match="state: expected the keys"):
            scheduler.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="expected one of 3 levels, got one of 2"):
        begin(sparsity_table=[30, 60, 90])[0].load_state_dict(state)
    masks = {**state["masks"], "0.weight": state["masks"]["0.weight"][:1]}
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        begin()[0].load_state_dict({**state, "masks": masks})
    with pytest.raises(ConfigError, match="Call prepare_sparse_model"):
        build_sparse_scheduler(level_wise()).load_state_dict(state)


def in_one_of_two_processes(store, rank):
    """Run the script of one process: DDP around the prepared model, data and a folder of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    kwargs = {"total_iters": 8, "sparsity_table": [30, 60], "prun_algo": 0, "no_prune_layer": "module.2"}
    scheduler = build_sparse_scheduler({"scheduler": {"type": "AmbaLevelPruneScheduler", "kwargs": kwargs}})
    wrapped = nn.parallel.DistributedDataParallel(scheduler.prepare_sparse_model(model))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    scheduler.set_lr_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 9))
    torch.manual_seed(rank)
    for iteration in range(8):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        scheduler.prune_model(wrapped, iteration)
    torch.save(model.state_dict(), "end.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # torch now and then aborts when it tears down what has talked over gloo


@pytest.mark.slow
def test_two_processes_have_the_same_masks_and_the_first_writes(folder, zeros_of):
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['in_one_of_two_processes'](sys.argv[2], int(sys.argv[3]))"
    processes = []
    for rank in range(2):
        (folder / str(rank)).mkdir()
        command = [sys.executable, "-c", code, __file__, str(folder / "store"), str(rank)]
        processes.append(subprocess.Popen(command, cwd=folder / str(rank), stderr=subprocess.PIPE, text=True))
    assert [process.communicate()[1] for process in processes] == ["", ""]
    first, second = (load(folder / str(rank) / "end.pt") for rank in range(2))
    # 0.6 of 128 are 77: 39 fall to the first layer, and 38 to the second, which is left out
    assert zeros_of(first) == {"0.weight": 39, "2.weight": 0}
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    files = [sorted(path.name for path in (folder / str(rank)).rglob("*.*")) for rank in range(2)]
    tables = ["desrie_prun_table.txt", "dict_prun_table.txt"]
    levels = ["global_sparse_rate_0.3.pth.tar", "global_sparse_rate_0.6.pth.tar"]
    assert files == [sorted([*tables, "end.pt", *levels]), ["end.pt"]]
    assert list(load(folder / "0" / SECOND)["model"]) == list(first)


def test_nothing_is_printed(begin, go_on, capfd):
    go_on(begin(verbose=True), range(8))
    assert capfd.readouterr() == ("", "")


def test_one_sparsity_for_all_layers_is_refused(begin):
    scheduler, model, *_ = begin()
    with pytest.raises(ConfigError, match="Set sparsity_table, or use BaseScheduler"):
        scheduler.update_sparsity_per_layer(model, 0.5)
