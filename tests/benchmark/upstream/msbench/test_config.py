from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench.config import read_config
from sparsedet.common.errors import ConfigError

AMBA = "AmbaLevelPruneScheduler"


def amba(**kwargs):
    return read_config({"scheduler": {"type": AMBA, "kwargs": kwargs}})


def test_defaults_are_those_of_msbench():
    settings = read_config({"scheduler": {"type": AMBA}})
    assert settings.total_iters == 10000
    assert settings.sparsity.schedule.levels == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert settings.sparsity.allocation.type == "energy"
    assert settings.sparsity.allocation.tuning == 0.5
    assert settings.do_sparse_analysis
    assert settings.output_dir == Path("sparse_analysis")
    assert settings.save_dir == Path("model_save_path")
    assert settings.example_input is None


@pytest.mark.parametrize(
    "config",
    [
        {"scheduler": {"type": "BaseScheduler", "kwargs": {}}},
        {"scheduler": {"type": "BaseScheduler", "kwargs": None}, "leaf_module": [nn.Conv2d], "fuse_bn": False},
        {"scheduler": None},
        {"MaskGeneratorConfig": {"type": "NormalMaskGenerator"}, "FakeSparseConfig": {"type": "DefaultFakeSparse"}},
        {
            "MaskGeneratorConfig": {"type": "NormalMaskGenerator", "kwargs": {"structured": False, "func": None}},
            "FakeSparseConfig": {"type": "FakeSparse", "kwargs": None},
            "leaf_module": [nn.BatchNorm2d],
            "fuse_bn": False,
            "sparsity": None,
            "sparse_mapping": None,
        },
    ],
)
def test_every_form_is_read(config):
    settings = read_config(config)
    assert settings.scheduler == "BaseScheduler"
    assert settings.sparsity.allocation.type == "uniform"
    assert not settings.sparsity.compensate
    assert settings.sparsity.schedule.sparsity == 0.0


@pytest.mark.parametrize("text", [None, "None"])
def test_the_number_of_iterations_may_come_later(text):
    assert amba(total_iters=text).total_iters is None


def test_objects_are_taken_as_they_are_given():
    batch, scheduler = {"image": torch.zeros(1)}, object()
    settings = amba(default_input_custom=batch, lr_scheduler=scheduler, sparsity_table=(30, 60), total_iters=8)
    assert settings.example_input is batch
    assert settings.lr_scheduler is scheduler
    assert settings.sparsity.schedule.levels == (0.3, 0.6)
    assert settings.total_iters == 8


def test_names_may_have_blanks_and_the_prefix_of_a_wrapper():
    settings = amba(no_prune_layer="conv1, module.fc", no_prune_keyword=" head.,module.neck")
    assert settings.sparsity.targets.exclude == (r"re:.*head\..*", r"re:.*neck.*", "conv1", r"re:(module\.)?fc")


def test_notes_are_about_what_differs():
    notes = {note.key: note.text for note in amba(total_iters=8, save_dir="a", output_dir="b", init_lr=0.1).notes}
    assert set(notes) == {"scheduler.type", "scheduler.kwargs.init_lr"}
    assert "fixed within a level" in notes["scheduler.type"]
    assert "starts again" in notes["scheduler.kwargs.init_lr"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schedular": {}}, "schedular: expected one of ['fake_sparse', "),
        ({"scheduler": {"type": "Amba"}}, "scheduler.type: expected one of ['AmbaLevelPruneScheduler', 'AmpereSch"),
        ({"scheduler": {"type": AMBA, "kwargs": {"total_iter": 8}}}, "Did you mean 'total_iters'?"),
        ({"scheduler": {"type": AMBA, "kwargs": {"total_iters": "8"}}}, "expected a number of steps or None, got '8'"),
        ({"scheduler": {"type": AMBA, "kwargs": {"sparsity_table": [60, 30]}}}, "expected levels that rise"),
        ({"scheduler": {"type": AMBA, "kwargs": {"sparsity_table": [30, 100]}}}, "percentages in [0, 100), got 100"),
        ({"scheduler": {"type": AMBA, "kwargs": {"prune_tolerance_max": 1.1}}}, "Refused: it caps every layer"),
        ({"scheduler": {"type": "AmpereScheduler", "kwargs": {"whitelist": [nn.Linear]}}}, 'got ["Linear"]. Refused'),
        ({"scheduler": {"type": "ProbMaskPruneScheduler"}}, "sparsity.schedule {type: cubic}"),
        ({"scheduler": {"type": "STRScheduler"}}, "sparsity.schedule {type: dynamic}"),
        ({"scheduler": {"type": "ADMMScheduler"}}, "sparsity.schedule {type: cubic}"),
        ({"mask_generator": {"type": "NMMaskGenerator"}}, "AmpereScheduler is the way to 2:4"),
        ({"mask_generator": {"type": "NuclearMaskGenerator"}}, "sparsity.pattern {type: channel}"),
        ({"mask_generator": {"type": "FPGMMaskGenerator"}}, "sparsity.pattern {type: channel}"),
        ({"mask_generator": {"type": "FCPTSMaskGenerator"}}, "sparsity.criterion {type: obc}"),
        ({"mask_generator": {"type": "NormalMaskGenerator", "kwargs": {"structured": True}}}, "{type: channel}"),
        ({"MaskGeneratorConfig": {"type": "STRMaskGenerator"}}, "sparsity.schedule {type: dynamic}"),
        ({"fake_sparse": {"type": "STRFakeSparse"}}, "Refused: "),
        ({"fake_sparse": {"type": "FakeSparse", "kwargs": {"mask_is_static": True}}}, "{type: obc}"),
        ({"fuse_bn": True}, "fuse_bn: expected false, got true. Refused: "),
        ({"sparse_mapping": {nn.Linear: nn.Linear}}, "sparse_mapping: expected nothing, got {"),
        ({"FakeSparseConfig": {"type": "FakeSparse"}, "fake_sparse": {"type": "FakeSparse"}}, "got both. Remove one."),
        ({"scheduler": "AmpereScheduler"}, "scheduler: expected a mapping, got 'AmpereScheduler'"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(config, message):
    with pytest.raises(ConfigError) as error:
        read_config(config)
    assert message in str(error.value)
    assert str(error.value).startswith("build_sparse_scheduler: ")


def test_every_type_that_is_refused_names_a_thing_that_exists():
    """Each ``{type: …}`` in a reason is a type of a native recipe."""
    import re

    from sparsedet.benchmark.upstream import sparsity_block
    from sparsedet.sparsity import CRITERIA, PATTERNS, SCHEDULES

    tables = {"criterion": CRITERIA, "pattern": PATTERNS, "schedule": SCHEDULES}
    texts = " ".join([*sparsity_block.NEAREST.values(), sparsity_block.MAGNITUDE, sparsity_block.WITHOUT_TRAINING])
    found = re.findall(r"sparsity\.(\w+) \{type: (\w+)", texts)
    assert {kind for kind, _ in found} == set(tables)
    for kind, name in found:
        assert name in tables[kind], name
