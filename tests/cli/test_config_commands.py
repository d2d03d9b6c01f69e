import json
from pathlib import Path

from ruamel.yaml import YAML

from sparsedet.benchmark.recipe import load_recipe
from sparsedet.common.config import dump

FILE = Path(__file__).parents[1] / "benchmark" / "upstream" / "files" / "retina_bn.yaml"


def test_translate_prints_a_recipe_that_loads_back_equal_and_what_became_of_each_key(sparsedet, tmp_path):
    given = ("--set", "trainer.max_epoch=12", "--set", "data.root=/data")
    code, out, err = sparsedet("config", "translate", FILE, *given)
    assert code == 0
    (tmp_path / "native.yaml").write_text(out)
    expected = load_recipe(FILE, given[1::2]).recipe
    assert load_recipe(tmp_path / "native.yaml").recipe == expected
    assert expected.training.epochs == 12
    lines = err.splitlines()
    assert "retina_bn: trainer.max_epoch: mapped: training.epochs: 12" in lines
    assert "retina_bn: colours: no effect: UP reads no key of this name; at most its anchor is used" in lines
    code, out, same = sparsedet("config", "translate", FILE, *given, "--json")
    assert (code, same) == (0, err)
    assert json.loads(out) == dump(expected)


def test_show_of_an_upstream_file_is_its_translation_without_the_notes(sparsedet):
    _, translated, _ = sparsedet("config", "translate", FILE)
    assert sparsedet("config", "show", FILE) == (0, translated, "")
    assert "net" not in YAML(typ="safe").load(translated)


def test_what_is_refused_is_said_with_exit_code_2(sparsedet):
    code, out, err = sparsedet("config", "translate", FILE, "--set", "runtime.aligned=true")
    assert (code, out) == (2, "")
    assert "runtime.aligned: expected false, got true. Refused: " in err
