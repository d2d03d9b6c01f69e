"""Groups from classes of channels, by hand."""

import numpy as np

from sparsedet.sparsity.permutation.groups import find_groups


def found(sites, pinned=(), parts=()):
    groups = find_groups(
        {key: np.array(ids) for key, ids in sites.items()},
        dict.fromkeys(pinned, "why"),
        [np.array(part) for part in parts],
    )
    return [{site: ids.tolist() for site, ids in group.positions.items()} for group in groups]


OUT, IN, OTHER = ("a", 0), ("b", 1), ("c", 1)


def test_channels_of_the_same_dimensions_are_a_group_in_the_same_order_everywhere():
    assert found({OUT: [5, 6, 7], IN: [7, 5, 6]}) == [{OUT: [[0, 1, 2]], IN: [[1, 2, 0]]}]


def test_pinned_channels_and_single_ones_are_none():
    assert found({OUT: [5, 6, 7], IN: [5, 6, 7]}, pinned=[6]) == [{OUT: [[0, 2]], IN: [[0, 2]]}]
    assert found({OUT: [5, 6], IN: [5, 6]}, pinned=[6]) == []
    assert found({OUT: [5, 6], IN: [5, 6]}, pinned=[5, 6]) == []


def test_dimensions_and_parts_tell_channels_apart():
    sites = {OUT: [0, 1, 2, 3], IN: [0, 1, 2, 3], OTHER: [2, 3]}
    assert found(sites) == [{OUT: [[0, 1]], IN: [[0, 1]]}, {OUT: [[2, 3]], IN: [[2, 3]], OTHER: [[0, 1]]}]
    assert found({OUT: [0, 1, 2, 3]}, parts=[[0, 1]]) == [{OUT: [[0, 1]]}, {OUT: [[2, 3]]}]
    assert found({OUT: [0, 1, 2, 3]}, parts=[[0, 1], [1, 2]]) == []


def test_occurrences_in_one_dimension_are_rows():
    assert found({OUT: [0, 1, 2], IN: [0, 1, 2, 0, 1, 2]}) == [{OUT: [[0, 1, 2]], IN: [[0, 1, 2], [3, 4, 5]]}]
    assert found({OUT: [0, 1, 2], IN: [0, 1, 2, 0, 1]}) == [{OUT: [[0, 1]], IN: [[0, 1], [3, 4]]}]
