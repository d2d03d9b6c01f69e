"""Numbers of channels, what ties and pins them, against graphs by hand."""

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedet.sparsity.permutation.flow import Flow, _connected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.integers(1, 30), seed=st.integers(0, 10**6), num_ties=st.integers(0, 12))
def test_classes_are_connected_components(size, seed, num_ties):
    generator = np.random.default_rng(seed)
    ties = [tuple(generator.integers(0, size, (2, generator.integers(1, 5)))) for _ in range(num_ties)]
    graph = networkx.Graph()
    graph.add_nodes_from(range(size))
    for one, other in ties:
        graph.add_edges_from(zip(one.tolist(), other.tolist(), strict=True))
    expected = {node: min(nodes) for nodes in networkx.connected_components(graph) for node in nodes}
    assert _connected(size, ties).tolist() == [expected[node] for node in range(size)]


def test_a_long_chain_is_one_class():
    numbers = np.arange(1000)
    assert not _connected(1000, [(numbers[i : i + 1], numbers[i + 1 : i + 2]) for i in range(999)]).any()


@pytest.fixture
def tensors():
    return {"a": torch.zeros(3, 2), "b": torch.zeros(2, 1)}


def test_every_position_has_a_number_and_the_first_reason_counts(tensors):
    flow = Flow(tensors, lambda operation: None)
    assert {site: ids.tolist() for site, ids in flow.sites.items()} == {
        ("a", 0): [0, 1, 2],
        ("a", 1): [3, 4],
        ("b", 0): [5, 6],
    }
    assert flow.tie([flow.of(tensors["a"])[1], flow.of(tensors["b"])[0]]).tolist() == [3, 4]
    flow.pin([flow.of(tensors["b"])[0][:1]], "first")
    flow.pin([flow.of(tensors["a"])[1]], "second")
    assert flow.part(flow.of(tensors["b"])[0], slice(1, None)) is None  # of size 1
    assert flow.part(flow.of(tensors["b"])[0], slice(None)).tolist() == [5, 6]
    classes, pinned, parts = flow.classes()
    assert classes.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert pinned == {3: "first", 4: "second"}
    assert [part.tolist() for part in parts] == [[4]]


def test_operations_without_a_rule_pin_what_they_read(tensors):
    flow = Flow(tensors, lambda operation: None)
    with flow:
        result = torch.mm(tensors["a"], torch.ones(2, 4))
    assert flow.seen == {"a"}
    pinned = flow.classes()[1]
    assert pinned == dict.fromkeys(range(5), "goes through aten::mm, which is not followed")
    assert [ids.tolist() for ids in flow.of(result)] == [[7, 8, 9], [10, 11, 12, 13]]


def test_what_is_made_of_nothing_is_not_followed(tensors):
    flow = Flow(tensors, lambda operation: None)
    with flow:
        assert flow.of(torch.zeros(2, 3)) == [None, None]
    assert flow.classes()[1] == {}


def test_labels_end_with_their_tensor(tensors):
    flow = Flow(tensors, lambda operation: None)
    temporary = torch.zeros(4)
    flow.enter([temporary])
    assert len(flow._labels) == 3
    del temporary
    assert len(flow._labels) == 2
