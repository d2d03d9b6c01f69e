"""Folding batch norms, held against what onnxruntime computes from both graphs and numbers worked out by hand."""

import numpy as np
import pytest

from sparsedet.export.onnx_fold import fold_batch_norms

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

runtime = pytest.importorskip("onnxruntime")


def graph_of(nodes, constants, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, None, None])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def norm_of(source, target, index=0, **attributes):
    names = [f"{part}{index}" for part in ("gamma", "beta", "mean", "variance")]
    return helper.make_node("BatchNormalization", [source, *names], [target], **attributes)


def norm_constants(channels, index=0, seed=0):
    random = np.random.default_rng(seed)
    values = [random.normal(size=channels) for _ in range(3)] + [random.uniform(0.5, 2, channels)]
    return {f"{part}{index}": value for part, value in zip(("gamma", "beta", "mean", "variance"), values, strict=True)}


def values(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kinds(model):
    return [node.op_type for node in model.graph.node]


def sparse(*shape, seed=1):
    random = np.random.default_rng(seed)
    return random.normal(size=shape) * (random.random(shape) < 0.4)


def evaluate(model, channels=4):
    x = np.random.default_rng(2).normal(size=(2, channels, 5, 6)).astype(np.float32)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_by_hand():
    constants = {"w": [[[[2.0]], [[0.0]]]], "b": [1.0], "gamma0": [-3.0], "beta0": [0.5], "mean0": [2.0]}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"]), norm_of("c", "y", epsilon=1.0)]
    model = graph_of(nodes, {**constants, "variance0": [8.0]})
    fold_batch_norms(model)
    assert kinds(model) == ["Conv"]
    weight, bias = values(model).values()  # the factor is -3 / sqrt(8 + 1) = -1
    assert weight.tolist() == [[[[-2.0]], [[0.0]]]]
    assert not np.signbit(weight[0, 1])
    assert bias.tolist() == [(1.0 - 2.0) * -1 + 0.5]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_the_graph_computes_the_same_and_zeros_stay(kind, groups):
    weight = sparse(*((6, 4 // groups) if kind == "Conv" else (4, 6 // groups)), 3, 3)
    nodes = [helper.make_node(kind, ["x", "w"], ["c"], group=groups), norm_of("c", "y")]
    model = graph_of(nodes, {"w": weight, **norm_constants(6)})
    before = evaluate(model)[0]
    fold_batch_norms(model)
    assert kinds(model) == [kind]
    np.testing.assert_allclose(evaluate(model)[0], before, atol=1e-5)
    folded = values(model)["w.folded.1"]
    assert ((folded == 0) == (weight == 0)).all()
    assert not np.signbit(folded[folded == 0]).any()
    assert folded.dtype == np.float32


def test_a_shared_weight_becomes_a_copy_for_each_norm():
    nodes = [helper.make_node("Conv", ["x", "w"], [f"c{i}"]) for i in range(2)]
    nodes += [norm_of(f"c{i}", f"y{i}", i) for i in range(2)]
    constants = {"w": sparse(3, 4, 1, 1), **norm_constants(3), **norm_constants(3, 1, seed=5)}
    model = graph_of(nodes, constants, ("y0", "y1"))
    before = evaluate(model)
    fold_batch_norms(model)
    assert kinds(model) == ["Conv", "Conv"]
    assert sorted(name for name in values(model) if name.startswith("w")) == ["w.folded.1", "w.folded.2"]
    for ours, expected in zip(evaluate(model), before, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_norms_that_cannot_be_folded_stay():
    conv, norm = helper.make_node("Conv", ["x", "w"], ["c"]), norm_of("c", "y")
    constants = {"w": sparse(4, 4, 1, 1), **norm_constants(4)}
    for model in (
        graph_of([conv, norm], constants, ("y", "c")),  # the output of the convolution is one of the graph
        graph_of([conv, norm, helper.make_node("Relu", ["c"], ["z"])], constants, ("y", "z")),
        graph_of([helper.make_node("Relu", ["x"], ["c"]), norm], norm_constants(4)),
        graph_of(
            [helper.make_node("Add", ["w", "w"], ["v"]), helper.make_node("Conv", ["x", "v"], ["c"]), norm], constants
        ),
    ):
        before, nodes = evaluate(model), kinds(model)
        fold_batch_norms(model)
        assert kinds(model) == nodes
        for ours, expected in zip(evaluate(model), before, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_a_weight_that_a_branch_reads_stays_for_it():
    inner = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["i"])],
        "b",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm_of("c", "y"),
        helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner),
    ]
    model = graph_of(nodes, {"w": sparse(4, 4, 1, 1), **norm_constants(4)}, ("y", "z"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    fold_batch_norms(model)
    assert kinds(model) == ["Conv", "If"]
    assert {"w", "w.folded.1"} <= values(model).keys()


def test_rounded_weights_are_folded_from_their_exact_values():
    weight = np.array([[[[1.0 + 2**-11]]]])
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["c"]), norm_of("c", "y", epsilon=0.0)], {})
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float16), "w"))
    for part, value in (("gamma0", 2.0**-3), ("beta0", 0.0), ("mean0", 0.0), ("variance0", (1 + 2**-11) ** 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), part))
    fold_batch_norms(model, {"w": weight.astype(np.float32)})
    folded = values(model)["w.folded.1"]
    assert folded.dtype == np.float16
    assert folded.item() == 2.0**-3  # from the rounded weight it would be 2**-3 / (1 + 2**-11), which rounds down
