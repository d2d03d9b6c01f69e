def test_every_allocation_is_timed(run):
    arguments = ("--networks", "squeezenet1_1", "--image-size", "64", "--rounds", "1")
    table, results = run("allocation", *arguments)
    assert len(table) == len(results) + 2
    assert [result["allocation"] for result in results] == [
        "uniform", "erk", "global", "lamp", "energy", "sensitivity", "profile pass",
    ]  # fmt: skip
    assert all(result["cpu_s"]["median"] > 0 for result in results)
