from pathlib import Path

import pytest

from sparsedet.benchmark.upstream.sparsity_block import translate_document
from sparsedet.common.document import parse_yaml
from sparsedet.common.errors import ConfigError

LEVEL_WISE = """\
sparsity:
  mask_generator:
    type: NormalMaskGenerator
  fake_sparse:
    type: FakeSparse
  scheduler:
    type: AmbaLevelPruneScheduler
    kwargs:
      total_iters: None
      sparsity_table: [30,40,50,60,70,80,90]
      no_prune_keyword: ''
      no_prune_layer: ''
      prun_algo: 1
      prun_algo_tuning: 0.5
      dw_no_prune: False
      do_sparse_analysis: False
      default_input_shape: [1,3,1333,1333]  # choose your input shape
      output_dir: path_to_sparse_analysis
      save_dir: path_to_sparse_ckpts
  leaf_module: [Space2Depth, FrozenBatchNorm2d]
"""
AMPERE = """\
sparsity:
  scheduler:
    type: AmpereScheduler
    kwargs:
      mask_calculator: m4n2_1d
      allow_recompute_mask: False
      allow_permutation: False
      verbosity: 0
"""


def translate(text, **changes):
    for old, new in changes.items():
        text = "\n".join(new if line.strip().startswith(f"{old}:") else line for line in text.splitlines())
    document = parse_yaml(text, "r.yaml", Path("/"))
    notes = translate_document(document)
    return document.data, {note.key: note for note in notes}


def keys_of(text):
    document = parse_yaml(text, "r.yaml", Path("/"))
    block = document.data["sparsity"]
    keys = {f"sparsity.{key}" for key in block if key != "scheduler"}
    return keys | {f"sparsity.scheduler.kwargs.{key}" for key in block["scheduler"]["kwargs"]}


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
    assert "lamp" in notes["sparsity.scheduler.kwargs.prun_algo"].text


def test_leaf_module_may_stand_beside_the_block():
    data, notes = translate(LEVEL_WISE.replace("  leaf_module", "leaf_module"))
    assert "leaf_module" not in data
    assert notes["leaf_module"].outcome == "no effect"


def test_the_published_ampere_block():
    data, notes = translate(AMPERE)
    assert data["sparsity"] == {
        "pattern": {"type": "n_m", "n": 2, "m": 4, "eligibility": "asp"},
        "schedule": {"type": "one_shot"},
    }
    assert set(notes) == keys_of(AMPERE)


def test_what_the_keys_mean():
    data, _ = translate(
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
    assert data["sparsity"]["targets"]["exclude"] == [
        "re:.*neck.*",
        r"re:.*stem\..*",
        "head.cls_pred",
        "head.box_pred",
        "preset:depthwise",
    ]


@pytest.mark.parametrize(
    ("block", "line", "message"),
    [
        (LEVEL_WISE, "prun_algo: 2", "r.yaml:13: sparsity.scheduler.kwargs.prun_algo: expected 0 or 1, got 2."),
        (LEVEL_WISE, "prun_algo: 1\n      prun_hw_aware: chip.txt", "expected nothing, got 'chip.txt'. Refused: "),
        (LEVEL_WISE, "prun_algo: 1\n      mask_dict: a.pth", "mask_dict: expected nothing, got 'a.pth'. Refused: "),
        (LEVEL_WISE, "prun_algo: 1\n      prune_algo: 1", "prune_algo: expected a key of AmbaLevelPruneScheduler"),
        (LEVEL_WISE, "sparsity_table: [30, 100]", "sparsity_table: expected percentages in [0, 100), got 100."),
        (LEVEL_WISE, "total_iters: many", "total_iters: expected a number of steps or None, got 'many'."),
        (AMPERE, "mask_calculator: m4n2_2d_best", "mask_calculator: expected 'm4n2_1d', got 'm4n2_2d_best'."),
        (AMPERE, "allow_permutation: True", "allow_permutation: expected False, got True."),
        (AMPERE, "allow_recompute_mask: True", "allow_recompute_mask: expected False, got True."),
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


def test_unknown_keys_of_the_block_are_refused():
    with pytest.raises(ConfigError, match=r"sparsity\.mask_genrator: expected one of .* Did you mean 'mask_generator'"):
        translate(LEVEL_WISE.replace("  mask_generator:", "  mask_genrator:"))


def test_whole_files_of_united_perception_are_refused_for_now():
    with pytest.raises(ConfigError, match=r"net: expected a native recipe, got a whole United-Perception file"):
        translate("net:\n- name: backbone\n")


def test_native_blocks_pass_untouched():
    data, notes = translate("sparsity:\n  schedule: {type: one_shot, sparsity: 0.5}\n")
    assert data == {"sparsity": {"schedule": {"type": "one_shot", "sparsity": 0.5}}}
    assert notes == {}
