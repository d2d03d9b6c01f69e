from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.benchmark.upstream.sparsity_block import translate_document
from sparsedet.common.config import validate
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Sparsifier, SparsityConfig

FILES = Path(__file__).parent / "files"
LEVEL_WISE = (FILES / "published_level_wise.txt").read_text()
AMPERE = (FILES / "published_two_four.txt").read_text()


def translate(text, **changes):
    for old, new in changes.items():
        text = "\n".join(new if line.strip().startswith(f"{old}:") else line for line in text.splitlines())
    document = parse_yaml(text, "r.yaml", Path("/"))
    notes = translate_document(document)
    texts = {}
    for note in notes:
        texts[note.key] = f"{texts.get(note.key, '')}{note.outcome}: {note.text}\n"
    return document.data, texts


def keys_of(text):
    """Every key of a block that has no keys below it."""

    def leaves(node, path):
        if not isinstance(node, dict):
            return {path}
        return {leaf for key, item in node.items() for leaf in leaves(item, f"{path}.{key}")}

    return leaves(parse_yaml(text, "r.yaml", Path("/")).data["sparsity"], "sparsity")


def test_the_published_level_wise_block():
    data, notes = translate(LEVEL_WISE)
    assert data["sparsity"] == {
        "scope": "all",
        "targets": {"include_frozen": True, "exclude": []},
        "schedule": {"type": "level_wise", "levels": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]},
        "allocation": {"type": "energy", "tuning": 0.5},
        "input_shape": [1, 3, 1333, 1333],
    }
    assert data["write_analysis"] is False
    assert set(notes) == keys_of(LEVEL_WISE)
    assert "lamp" in notes["sparsity.scheduler.kwargs.prun_algo"]
    assert "fixed within a level" in notes["sparsity.scheduler.type"]


def test_leaf_module_may_stand_beside_the_block():
    data, notes = translate(LEVEL_WISE.replace("  leaf_module", "leaf_module"))
    assert "leaf_module" not in data
    assert notes["leaf_module"].startswith("no effect")


def test_the_published_ampere_block():
    data, notes = translate(AMPERE)
    assert data["sparsity"] == {
        "pattern": {"type": "n_m", "n": 2, "m": 4, "eligibility": "asp"},
        "schedule": {"type": "one_shot"},
    }
    assert set(notes) == keys_of(AMPERE)


def test_what_the_keys_mean():
    data, notes = translate(
        LEVEL_WISE,
        total_iters="      total_iters: 700",
        no_prune_keyword="      no_prune_keyword: 'neck, stem.'",
        no_prune_layer="      no_prune_layer: 'head.cls_pred,head.box_pred'",
        prun_algo="      prun_algo: 0",
        dw_no_prune="      dw_no_prune: true",
        do_sparse_analysis="      do_sparse_analysis: True",
    )
    assert data["expected_steps"] == 700
    assert data["write_analysis"] is True
    assert data["sparsity"]["allocation"] == {"type": "uniform"}
    assert data["sparsity"]["compensate"] is False
    assert "not made up for" in notes["sparsity.scheduler.kwargs.prun_algo"]
    assert data["sparsity"]["targets"]["exclude"] == [
        "re:.*neck.*",
        r"re:.*stem\..*",
        "head.cls_pred",
        "head.box_pred",
        "preset:grouped",
    ]


@pytest.mark.parametrize(
    ("block", "line", "message"),
    [
        (LEVEL_WISE, "prun_algo: 2", "r.yaml:13: sparsity.scheduler.kwargs.prun_algo: expected 0 or 1, got 2."),
        (LEVEL_WISE, "prun_algo: 1\n      prun_hw_aware: chip.txt", "expected nothing, got 'chip.txt'. Refused: "),
        (LEVEL_WISE, "prun_algo: 1\n      mask_dict: a.pth", "mask_dict: expected nothing, got 'a.pth'. Refused: "),
        (LEVEL_WISE, "prun_algo: 1\n      prune_algo: 1", "prune_algo: expected one of ['default_input_custom', "),
        (LEVEL_WISE, "prun_algo: 1\n      prune_algo: 1", "Did you mean 'prun_algo'?"),
        (LEVEL_WISE, "sparsity_table: [30, 100]", "sparsity_table: expected percentages in [0, 100), got 100."),
        (LEVEL_WISE, "total_iters: many", "total_iters: expected a number of steps or None, got 'many'."),
        (AMPERE, "mask_calculator: m8n4_1d", "expected one of ['m4n2_1d', 'm4n2_2d_best', 'm4n2_2d_greedy']"),
        (AMPERE, "verbosity: 0\n      whitelist: [a]", "whitelist: expected null, got [\"a\"]. Refused: "),
        (LEVEL_WISE, "prun_algo: 1\n      prun_hw_aware: chip.txt", "alternative is sparsity.limits, the largest"),
        (LEVEL_WISE, "prun_algo: 1\n      prune_tolerance_max: 1.2", "prune_tolerance_max: expected 1.0, got 1.2. Ref"),
        (LEVEL_WISE, "dw_no_prune: maybe", "dw_no_prune: expected true or false, got 'maybe'."),
        (LEVEL_WISE, "leaf_module: [A]\n  fuse_bn: true", "fuse_bn: expected false, got true. Refused: "),
        (LEVEL_WISE, "sparsity_table: 30", "sparsity_table: expected a list of numbers, got 30."),
        (AMPERE, "allow_permutation: maybe", "allow_permutation: expected true or false, got 'maybe'."),
        (AMPERE, "allow_recompute_mask: True", "allow_recompute_mask: expected false, got true. Refused: "),
        (AMPERE, "type: AmbaScheduler", "'AmpereScheduler'], got 'AmbaScheduler'."),
        (LEVEL_WISE, "type: NMMaskGenerator", "expected one of ['NormalMaskGenerator'], got 'NMMask"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(block, line, message):
    key = line.split(":")[0]
    lines = block.splitlines()
    index = next(i for i, text in enumerate(lines) if text.strip().startswith(f"{key}:"))
    indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
    lines[index] = indent + line
    with pytest.raises(ConfigError) as error:
        translate("\n".join(lines))
    assert message in str(error.value)


def test_permutation_is_that_of_the_pattern():
    asked = AMPERE.replace("allow_permutation: False", "allow_permutation: True")
    data, notes = translate(asked)
    plain = translate(AMPERE)[0]["sparsity"]
    assert data["sparsity"] == {**plain, "pattern": {**plain["pattern"], "permute": True}}
    assert notes["sparsity.scheduler.kwargs.allow_permutation"].startswith("mapped: sparsity.pattern.permute: true; ")
    with pytest.raises(ConfigError, match="allow_permutation: expected false with m4n2_2d_best, got true"):
        translate(asked.replace("m4n2_1d", "m4n2_2d_best"))


def test_unknown_keys_of_the_block_are_refused():
    with pytest.raises(ConfigError, match=r"sparsity\.mask_genrator: expected one of .* Did you mean 'mask_generator'"):
        translate(LEVEL_WISE.replace("  mask_generator:", "  mask_genrator:"))


def test_every_other_key_of_the_schedulers_has_no_effect_and_says_why():
    more = {
        "sparse_rate_tolerance": 0.01, "prune_tolerance_max": 1.0, "prune_tolerance_min": 1.0, "verbose": "true",
        "lr_scheduler": "null", "init_lr": 0.1, "mask_dict": "None", "prun_hw_aware": "''",
        "default_input_custom": "null",
    }  # fmt: skip
    lines = "".join(f"      {key}: {value}\n" for key, value in more.items())
    text = LEVEL_WISE.replace("      prun_algo: 1\n", "      prun_algo: 1\n" + lines)
    text = text.replace("type: FakeSparse\n", "type: DefaultFakeSparse\n    kwargs: {weight_correction: false}\n")
    text = text.replace("  mask_generator:", "  fuse_bn: false\n  sparsity: null\n  mask_generator:")
    data, notes = translate(text)
    assert data["sparsity"] == translate(LEVEL_WISE)[0]["sparsity"]
    assert set(notes) >= keys_of(text)
    for key in more:
        assert notes[f"sparsity.scheduler.kwargs.{key}"].startswith("no effect: ")


@pytest.mark.parametrize(("generator", "key"), [("mask_generator", "structured"), ("fake_sparse", "mask_is_static")])
def test_other_masks_than_plain_ones_are_refused(generator, key):
    old = "NormalMaskGenerator" if generator == "mask_generator" else "FakeSparse"
    with pytest.raises(
        ConfigError, match=rf"sparsity\.{generator}\.kwargs\.{key}: expected false, got true\. Refused:"
    ):
        translate(LEVEL_WISE.replace(f"type: {old}", f"type: {old}\n    kwargs: {{{key}: true}}"))


def test_prun_algo_0_gives_each_layer_the_target_whatever_is_left_out():
    """msbench_semantics §12.3: 30 % asked, and a layer with 86 % of the weights left out, are 4.2 % in all."""
    text = LEVEL_WISE.replace("prun_algo: 1", "prun_algo: 0").replace("no_prune_layer: ''", "no_prune_layer: '2'")
    document = parse_yaml(text, "r.yaml", Path("/"))
    translate_document(document)
    config = validate(SparsityConfig, document, ("sparsity",))
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 40), nn.Linear(40, 77))  # 3080 of 3580 weights: 86 %
    sparsifier = Sparsifier(model, config, (torch.zeros(1, 10),))
    sparsifier.prune_(0)
    zeros = {layer.name: layer.num_zeros for layer in sparsifier.measure().layers}
    assert zeros == {"0.weight": 30, "1.weight": 120, "2.weight": 0}
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.042, abs=2e-4)


def test_defaults_are_those_of_msbench():
    data, _ = translate("sparsity: {scheduler: {type: AmbaLevelPruneScheduler}}\n")
    assert data == {
        "sparsity": {
            "scope": "all",
            "targets": {"include_frozen": True, "exclude": []},
            "schedule": {"type": "level_wise", "levels": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]},
            "allocation": {"type": "energy", "tuning": 0.5},
        },
        "write_analysis": True,
    }


def test_native_blocks_pass_untouched():
    data, notes = translate("sparsity:\n  schedule: {type: one_shot, sparsity: 0.5}\n")
    assert data == {"sparsity": {"schedule": {"type": "one_shot", "sparsity": 0.5}}}
    assert notes == {}
