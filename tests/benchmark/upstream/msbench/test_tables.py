import ast

import pytest

from sparsedet.benchmark.upstream.msbench.tables import MAX_BYTES, has_tables, read_tables, write_tables
from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Selected


def row(name, numel, chosen=True, module_type="Conv2d"):
    return Selected(name, module_type, (numel, 1), numel, chosen, "include '*'" if chosen else "exclude 'stem'")


SELECTION = (row("stem.weight", 50, chosen=False), row("body.weight", 100), row("fc.weight", 50, module_type="Linear"))
TABLE = [{"body.weight": 0.2, "fc.weight": 0.4}, {"body.weight": 0.6, "fc.weight": 0.8}]
# Three evaluations, of which the levels chose the second and the third.
THEIRS = "{'stem': [0.0, 0.0, 0.0], 'body': [0.1, 0.2, 0.6], 'fc': [0.1, 0.4, 0.8]}"
LEVELS = "a caption\n[0, 1, 2]\n[0.1, 0.2, 0.5]\nanother\n[1, 2]\n[0.2, 0.5]\n[12.5, np.float64(40)]\n"


@pytest.fixture
def write(folder):
    """Function that writes both files; its arguments stand in the place of what MSBench would write."""

    def run(ratios=THEIRS, levels=LEVELS):
        (folder / "dict_prun_table.txt").write_text(ratios)
        (folder / "desrie_prun_table.txt").write_text(levels)

    return run


def test_a_table_of_msbench(folder, write):
    assert not has_tables(folder)
    write()
    assert has_tables(folder)
    assert read_tables(folder, SELECTION, 2) == TABLE


def test_shares_are_rounded_up_to_whole_weights_as_msbench_does_and_no_layer_dies(folder, write):
    write("{'stem': [0.0, 0.0], 'body': [0.0, 0.601], 'fc': [0.41, 0.99]}", LEVELS.replace("[1, 2]", "[0, 1]"))
    assert read_tables(folder, SELECTION, 2) == [
        {"body.weight": 0.0, "fc.weight": 21 / 50},
        {"body.weight": 0.61, "fc.weight": 49 / 50},
    ]


def test_names_may_stand_behind_the_prefix_of_a_wrapper(folder, write):
    write(THEIRS.replace("'stem'", "'module.stem'").replace("'body'", "'module.body'").replace("'fc'", "'module.fc'"))
    assert read_tables(folder, SELECTION, 2) == TABLE


def test_weights_that_msbench_never_prunes_may_lack_and_stay_dense(folder, write):
    write()
    more = (row("up.weight", 10, module_type="ConvTranspose2d"), row("attention.in_proj_weight", 10))
    table = read_tables(folder, (*SELECTION, *more), 2)
    assert table == [{**level, "up.weight": 0.0, "attention.in_proj_weight": 0.0} for level in TABLE]


def test_both_files_have_the_form_of_msbench(folder):
    write_tables(folder, TABLE, SELECTION, [0.2, 0.5])
    ratios = ast.literal_eval((folder / "dict_prun_table.txt").read_text())
    assert ratios == {"stem": [0.0, 0.0], "body": [0.2, 0.6], "fc": [0.4, 0.8]}
    lines = (folder / "desrie_prun_table.txt").read_text().splitlines()
    assert len(lines) == 7
    assert [ast.literal_eval(lines[index]) for index in (1, 4, 6)] == [[0, 1], [0, 1], [0.2, 0.5]]
    totals = [(20 + 20) / 200, (60 + 40) / 200]
    for index in (2, 5):
        assert ast.literal_eval(lines[index]) == pytest.approx(totals)
    assert read_tables(folder, SELECTION, 2) == TABLE


def test_a_table_of_ours_tells_other_shapes(folder):
    write_tables(folder, TABLE, SELECTION, [0.2, 0.5])
    other = (SELECTION[0], row("body.weight", 110), SELECTION[2])
    with pytest.raises(ConfigError, match=r"desrie_prun_table\.txt: expected a table of layers of these shapes"):
        read_tables(folder, other, 2)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ("__import__('os').mkdir('ran')", "dict_prun_table.txt: expected plain numbers, lists and names, got '__"),
        ("{'body': [open('ran', 'w').write('')]}", "expected plain numbers"),
        ("[" * 9000, "expected plain numbers"),
        ("{'body': [0.1", "expected plain numbers"),
        ("{'body': [" + "9" * 5000 + "]}", "expected plain numbers"),
        ("{[]: 1}", "expected plain numbers"),
        ("[1]", "expected a dict of layers, got list."),
        ("{}", "expected a dict of layers, got dict."),
        ("{'body': 0.5}", "expected for each layer a list of shares in [0, 0.99], got 'body': 0.5."),
        ("{'body': []}", "expected for each layer a list"),
        ("{1: [0.5]}", "expected for each layer a list"),
        ("{'body': [1e999]}", "expected for each layer a list"),
        ("{'body': [-0.1]}", "expected for each layer a list"),
        ("{'body': [True]}", "expected for each layer a list"),
        ("{'body': ['0.5']}", "expected for each layer a list"),
        ("{'body': [0.1, 0.2, 0.3], 'fc': [0.1]}", "expected as many shares for each layer, got 1 and 3."),
        (THEIRS.replace("fc", "fcs"), "'fcs', which is none of its 3. Did you mean 'fc'?"),
        ("{'body': [0.1, 0.2, 0.3]}", "expected every conv and linear layer of the model, got none named 'fc'."),
        (THEIRS.replace("[0.0, 0.0, 0.0]", "[0.0, 0.0, 0.1]"), "no zeros in 'stem', which is left out (exclude 'stem'"),
        (THEIRS.replace("0.2, 0.6", "0.6, 0.2"), "shares of 'body' that do not fall from level to level, got [0.6, 0."),
    ],
)  # fmt: skip
def test_what_is_no_table_of_the_model_is_refused_and_not_run(folder, write, ratios, message):
    write(ratios)
    with pytest.raises(ConfigError) as error:
        read_tables(folder, SELECTION, 2)
    assert message in str(error.value)
    assert "do_sparse_analysis: true" in str(error.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("a\nb\n", "desrie_prun_table.txt: expected seven lines, got 2."),
        (LEVELS.replace("[1, 2]", "1, two"), "expected plain numbers, lists and names, got '1, two' (ValueError)"),
        (LEVELS.replace("\n[1, 2]", "\n[1, 3]"), "expected a list of columns below 3 on line 5, got [1, 3]."),
        (LEVELS.replace("\n[1, 2]", "\n[1, -1]"), "expected a list of columns below 3"),
        (LEVELS.replace("\n[1, 2]", "\n[1, True]"), "expected a list of columns below 3"),
        (LEVELS.replace("\n[1, 2]", "\n3"), "expected a list of columns below 3"),
        (LEVELS.replace("\n[1, 2]", "\n[0, 1, 2]"), "a column for each of the 2 levels of sparsity_table, got 3."),
    ],
)  # fmt: skip
def test_levels_that_do_not_fit_are_refused(folder, write, levels, message):
    write(levels=levels)
    with pytest.raises(ConfigError) as error:
        read_tables(folder, SELECTION, 2)
    assert message in str(error.value)


def test_files_that_are_too_large_or_no_text_are_refused(folder, write):
    write(ratios=" " * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="expected at most 4000000 bytes, got more"):
        read_tables(folder, SELECTION, 2)
    (folder / "dict_prun_table.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        read_tables(folder, SELECTION, 2)
    (folder / "dict_prun_table.txt").unlink()
    with pytest.raises(ConfigError, match="expected a readable file, got 'No such file or directory'"):
        read_tables(folder, SELECTION, 2)
