"""The content of the tables, against tables written by hand."""

import pytest

from sparsedet.report.run import load_run
from sparsedet.report.tables import (
    Table,
    ap_text,
    detail_table,
    environments,
    level_name,
    notes,
    origin_table,
    published_tables,
    share_text,
    sparsity_name,
)

CORNER = "Network(config)/sparsity"

LABEL = "retinanet (r18, bs=8*16, epoch=2*12)"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.4066, "40.7"), (0.0, "0.0"), (1.0, "100.0"), (None, ""), (-1.0, "n/a")]
)
def test_ap_in_percent(value, expected):
    assert ap_text(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.3, "30.00%"), (0.48819, "48.82%"), (None, "")])
def test_shares_in_percent(value, expected):
    assert share_text(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.29, "29%"), (0.875, "87.5%"), (0.1 + 0.2, "30%")])
def test_sparsity_names_hide_floating_point(value, expected):
    assert sparsity_name(value) == expected


def test_level_names(make):
    assert level_name(make.record()) == "dense"
    assert level_name(make.level("lamp", 0, 0.3, 0.6, 0.7)) == "30%"
    assert level_name(make.level("lamp", 0, 0.3, 0.6, 0.7, budget="macs")) == "30% of MACs"
    assert level_name(make.level("ampere", 0, 0.5, 0.6, 0.7, pattern="2:4")) == "2:4"


def test_one_table_per_scheduler_with_the_experiment_added_to_shared_labels(run_dir):
    assert published_tables(load_run(run_dir)) == (
        Table(
            "Level-wise pruning",
            "small models",
            (CORNER, "dense", "30%", "90%"),
            ((f"{LABEL}, lamp", "61.2", "60.0", "55.0"), (f"{LABEL}, energy", "61.2", "58.0", "")),
        ),
        Table("2:4", "small models", (CORNER, "dense", "50%"), ((LABEL, "61.2", "60.5"),)),
    )


def test_published_values_stand_below_the_measured_ones(tmp_path, make):
    levels = {"scheduler": "level_wise", "pattern": "unstructured", "sparsities": [0.3, 0.9], "start": "dense"}
    make.suite(
        tmp_path,
        "dense",
        "lamp",
        "unpublished",
        dense={"scheduler": "dense", "pattern": "none", "published_ap": [0.407]},
        lamp={**levels, "published_ap": [0.405, None]},
        unpublished={**levels, "label": "another"},
    )
    make.add(tmp_path, make.record(), make.level("lamp", 0, 0.3, 0.6, 0.74))
    assert published_tables(load_run(tmp_path))[0].rows == (
        (LABEL, "61.2", "60.0", "…"),
        (f"{LABEL}, published", "40.7", "40.5", ""),
        ("another", "61.2", "…", "…"),
        ("another, published", "40.7", "", ""),
    )


def test_one_table_per_family_and_rows_by_label(tmp_path, make):
    base, better = {"family": "base models"}, {"family": "better models"}
    make.suite(
        tmp_path, "d1", "d2", "d3", "a", "b", "c",
        d1={"label": "r50"} | base, d2={"label": "r18"} | better, d3={"label": "r18 cos"} | better,
        a={"label": "r50"} | base, b={"label": "r18"} | better, c={"label": "r18 cos"} | better,
    )  # fmt: skip
    for name, ap in (("d1", 0.37), ("d2", 0.407), ("d3", 0.413)):
        make.add(tmp_path, make.record(experiment=name, ap=ap))
    for name, ap in (("a", 0.375), ("b", 0.4071), ("c", 0.4129)):
        make.add(tmp_path, make.level(name, 0, 0.3, ap, 0.7))
    header = (CORNER, "dense", "30%")
    assert published_tables(load_run(tmp_path)) == (
        Table("Level-wise pruning", "base models", header, (("r50", "37.0", "37.5"),)),
        Table(
            "Level-wise pruning",
            "better models",
            header,
            (("r18", "40.7", "40.7"), ("r18 cos", "41.3", "41.3")),
        ),
    )


def test_cells_still_to_come_are_marked(tmp_path, make):
    plan = {"scheduler": "level_wise", "pattern": "unstructured", "sparsities": [0.3, 0.9]}
    make.suite(tmp_path, "dense", "lamp", "later", "unknown", dense={"scheduler": "dense"}, lamp=plan, later=plan)
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    run = load_run(tmp_path)
    assert [table.rows for table in published_tables(run)] == [
        ((f"{LABEL}, lamp", "…", "60.0", "…"), (f"{LABEL}, later", "…", "…", "…"))
    ]
    assert notes(run)[-1] == "Not finished, so that cells are empty or show …: dense, lamp, later, unknown."


def test_dense_experiments_alone_and_controls_have_their_own_table(tmp_path, make):
    make.suite(tmp_path, "dense", "control", "lamp", control={"start": "dense"}, lamp={"start": "dense"})
    make.add(tmp_path, make.record(), make.record(experiment="control", ap=0.617))
    both = Table(
        "Dense",
        "small models",
        (CORNER, "dense"),
        ((f"{LABEL}, dense", "61.2"), (f"{LABEL}, control", "61.7")),
    )
    assert published_tables(load_run(tmp_path)) == (both,)
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    tables = published_tables(load_run(tmp_path))
    assert [table.section for table in tables] == ["Level-wise pruning", "Dense"]
    assert tables[0].rows == ((LABEL, "61.2", "60.0"),)
    assert tables[1].rows == ((f"{LABEL}, control", "61.7"),)


def test_row_without_dense_experiment_has_an_empty_cell(tmp_path, make):
    make.suite(tmp_path, "lamp")
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    assert published_tables(load_run(tmp_path))[0].rows == ((LABEL, "", "60.0"),)


def test_details_of_every_level(run_dir):
    table = detail_table(load_run(run_dir))
    expected = """
        experiment|asked|allocated|measured|measured in chosen|AP after pruning|AP|AP50|MACs kept|parameters|\
not zero|MB dense|MB compact|steps|seconds|published AP|difference
        dense|dense||0.00%|||61.2|90.0|100.0%|1,000|1,000|4.12|4.13|3,200|45.2||
        lamp|30%|29.95%|29.90%|30.00%|30.0|60.0|90.0|74.0%|1,000|700|4.12|2.92|560|45.2||
        lamp|90%|89.95%|89.90%|90.00%|27.5|55.0|90.0|29.0%|1,000|100|4.12|0.52|560|45.2||
        energy|30%|29.95%|29.90%|30.00%|29.0|58.0|90.0|70.0%|1,000|700|||560|45.2||
        ampere|50% (2:4)||48.80%|50.00%|30.2|60.5|90.0|61.0%|1,000|500|4.12|2.12|560|45.2|60.0|+0.5
    """
    lines = [line.strip() for line in expected.strip().splitlines()]
    assert ["|".join(row) for row in (table.header, *table.rows)] == lines


def test_published_columns_only_where_something_is_published(tmp_path, make):
    make.suite(tmp_path, "lamp", "worse")
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    assert detail_table(load_run(tmp_path)).header[-1] == "seconds"
    assert len(detail_table(load_run(tmp_path)).rows[0]) == 15
    make.add(tmp_path, make.level("worse", 0, 0.3, 0.36, 0.7, published_ap=0.407))
    assert [row[-2:] for row in detail_table(load_run(tmp_path)).rows] == [("", ""), ("40.7", "-4.7")]


def test_intervals_stand_beside_ap_and_the_drop_is_dense_minus_sparse(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp")
    make.add(tmp_path, make.record(ap_interval=(0.6, 0.6249)))
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.622, 0.7, ap_interval=(0.6, 0.63), ap_drop_interval=(-0.02, 0.001)))
    make.add(tmp_path, make.level("lamp", 1, 0.9, 0.55, 0.3))
    run = load_run(tmp_path)
    table = detail_table(run)
    assert table.header[6:10] == ("AP", "AP interval", "AP lost", "AP50")
    assert [row[6:9] for row in table.rows] == [
        ("61.2", "60.0 to 62.5", ""),
        ("62.2", "60.0 to 63.0", "-1.0 (-2.0 to 0.1)"),
        ("55.0", "", ""),
    ]
    assert any(note.startswith("AP interval is") for note in notes(run))
    make.suite(tmp_path, "lamp")  # the dense one is no longer in the suite
    assert "AP lost" not in detail_table(load_run(tmp_path)).header


def test_without_intervals_nothing_is_said_of_them(run_dir):
    run = load_run(run_dir)
    assert "AP interval" not in detail_table(run).header
    assert not any("AP interval" in note for note in notes(run))


def test_ap_after_reestimation_only_where_norms_were_estimated_anew(tmp_path, make):
    make.suite(tmp_path, "lamp", "anew")
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7))
    assert "AP after re-estimation" not in detail_table(load_run(tmp_path)).header
    make.add(tmp_path, make.level("anew", 0, 0.3, 0.5, 0.7, ap_after_reestimation=0.423))
    table = detail_table(load_run(tmp_path))
    assert table.header[5:8] == ("AP after pruning", "AP after re-estimation", "AP")
    assert [row[5:8] for row in table.rows] == [("30.0", "", "60.0"), ("25.0", "42.3", "50.0")]
    assert (table.header[-1], table.rows[1][-1]) == ("seconds", "45.2")


def test_origin_of_the_numbers(run_dir):
    rows = origin_table(load_run(run_dir)).rows
    assert rows[0] == ("dense", "1 of 1", "from scratch", "", "0", "c0ffee", "da7a")
    assert rows[2] == ("energy", "1 of 2", "from scratch", "energy", "0", "c0ffee", "da7a")


def test_pending_experiment_has_no_origin(tmp_path, make):
    make.suite(tmp_path, "lamp")
    assert origin_table(load_run(tmp_path)).rows == (("lamp", "pending", "", "", "", "", ""),)


def test_one_sentence_per_environment(tmp_path, make):
    make.suite(tmp_path, "dense", "lamp")
    make.add(tmp_path, make.record(environment={"device": "cpu"}))
    make.add(tmp_path, make.level("lamp", 0, 0.3, 0.6, 0.7, environment={"device": "cpu"}))
    make.add(tmp_path, make.level("lamp", 1, 0.9, 0.6, 0.7, environment={"device": "cuda:0"}))
    assert environments(load_run(tmp_path)) == (
        "Environment of dense, lamp: device cpu.",
        "Environment of lamp: device cuda:0.",
    )


def test_notices_are_notes(run_dir):
    with (run_dir / "lamp" / "records.jsonl").open("a") as stream:
        stream.write("{")
    assert "half written" in notes(load_run(run_dir))[-1]
