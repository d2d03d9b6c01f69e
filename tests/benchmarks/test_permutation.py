def test_every_case_of_asp_is_searched(run):
    table, results = run("permutation", "--networks", "resnet18", "--only-small")
    assert len(table) == len(results) + 2 == 7 + 1 + 2
    for result in results[:7]:
        assert result["share_after"] >= result["share_asp"] * (1 - 1e-6) > result["share_before"]
    assert results[7]["share_after"] > results[7]["share_before"]
