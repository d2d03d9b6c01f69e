"""Finding the weights of a model in graphs made by hand."""

import numpy as np
import pytest
import torch

from sparsedet.common.errors import CheckpointError
from sparsedet.export.onnx_audit import audit_onnx

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper


def pruned(*shape, seed=0, sparsity=0.75):
    random = np.random.default_rng(seed)
    return torch.tensor(random.normal(size=shape) * (random.random(shape) >= sparsity), dtype=torch.float32)


@pytest.fixture
def write(tmp_path):
    """Function of nodes and constants that writes a graph whose intermediate results are of no interest."""

    def make(nodes, constants):
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["m"])],
            [
                array if isinstance(array, TensorProto) else numpy_helper.from_array(np.asarray(array), name)
                for name, array in constants.items()
            ],
        )
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
        return path

    return make


def conv(weight, output="y", kind="Conv", **attributes):
    return helper.make_node(kind, ["x", weight], [output], **attributes)


def test_a_file_alone(write):
    weight = torch.zeros(4, 8)
    weight[0, :2], weight[1, 2:5], weight[2, :4] = 1.0, 1.0, 1.0  # a dead channel 3, one group of 4 with 4
    nodes = [helper.make_node("MatMul", ["x", "turned"], ["a"]), conv("c")]
    audit = audit_onnx(write(nodes, {"turned": weight.T.numpy(), "c": np.ones((2, 3, 1, 1), np.float32)}))
    turned, dense = audit.tensors
    assert (turned.name, turned.shape, turned.num_zeros, turned.num_dead_channels) == ("turned", (4, 8), 32 - 9, 1)
    assert turned.n_m_violations == 1
    assert (dense.name, dense.num_zeros, dense.n_m_violations) == ("c", 0, None)
    assert audit.measured_sparsity == pytest.approx(23 / 38)
    assert audit.weights == audit.faults == ()


def test_scaled_copies_are_found_whatever_they_are_called(write):
    weight, factors = pruned(8, 4, 3, 3), np.random.default_rng(1).normal(size=(3, 8, 1, 1, 1)).astype(np.float32)
    copies = {f"t{i}": weight.numpy() * factors[i] for i in range(3)}
    audit = audit_onnx(write([conv(name, f"y{name}") for name in copies], copies), {"head": weight})
    (found,) = audit.weights
    assert (found.name, found.copies, found.num_lost, found.num_extra) == ("head", ("t0", "t1", "t2"), 0, 0)
    assert found.num_zeros == int((weight == 0).sum())
    assert found.num_dead == 0
    assert audit.faults == ()


def test_copies_of_a_weight_count_once_in_the_share_of_zeros(write):
    head, other = pruned(8, 4, 3, 3), pruned(8, 4, 3, 3, seed=1, sparsity=0.2)
    scales, ones = pruned(8, 1, 1, 1, sparsity=0).numpy(), pruned(8, 1, 1, 1, seed=2, sparsity=0).numpy()
    constants = {
        "p3": head.numpy(),
        "p4": head.numpy() * scales,
        "p5": (head.numpy() * 3 * scales).astype(np.float16),
        "other": other.numpy(),
        "one": scales,  # of one value for each output channel, so that any of its kind is a multiple
        "another": ones,
        "damaged": np.where(np.cumsum(head.numpy() == 0).reshape(head.shape) == 1, 0.5, head.numpy()),
    }
    audit = audit_onnx(write([conv(name, f"y{name}") for name in constants], constants))
    assert [tensor.name for tensor in audit.distinct] == ["p3", "other", "one", "another", "damaged"]
    assert [tensor.name for tensor in audit.tensors] == list(constants)
    num_zeros = int(2 * (head == 0).sum() + (other == 0).sum()) - int((constants["damaged"] == 0.5).sum())
    assert audit.measured_sparsity == num_zeros / (3 * 288 + 16)


def quantised(weight, axis):
    """Return integers around 3, and the scales along an axis."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    scales = (weight.abs().amax(others, keepdim=True) / 120).numpy()
    return (np.rint(weight.numpy() / scales) + 3).astype(np.int8), scales.flatten()


def test_eight_bit_weights_are_zero_where_they_are_the_zero_point(write):
    weight, linear = pruned(8, 4, 3, 3), pruned(6, 5, seed=1, sparsity=0.3)
    (integers, scales), (turned, steps) = quantised(weight, 0), quantised(linear.T, 1)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["float"], axis=0),
        conv("float", "a"),
        helper.make_node("DequantizeLinear", ["t", "steps", "points"], ["f"]),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    constants = {"w": integers, "scales": scales, "t": turned, "steps": steps}
    constants |= {"zeros": np.full(8, 3, np.int8), "points": np.full(6, 3, np.int8)}
    audit = audit_onnx(write(nodes, constants), {"conv": weight, "fc": linear})
    assert audit.faults == ()
    assert [found.copies for found in audit.weights] == [("w",), ("t",)]
    assert [tensor.shape for tensor in audit.tensors] == [(8, 4, 3, 3), (6, 5)]
    assert [tensor.num_zeros for tensor in audit.tensors] == [int((integers == 3).sum()), int((turned == 3).sum())]
    assert audit.weights[0].num_extra == int((integers == 3).sum() - (weight == 0).sum())
    place = tuple(np.argwhere(weight.numpy() == 0)[0])
    integers[place] = 4
    (fault,) = audit_onnx(write(nodes, constants), {"conv": weight, "fc": linear}).faults
    assert fault == "conv: expected zeros where the model has them, got other values at 1 places of 'w'"
    integers[place], largest = 3, np.unravel_index(integers.argmax(), integers.shape)
    integers[largest] = 6 - integers[largest]
    (first, *_) = audit_onnx(write(nodes, constants), {"conv": weight, "fc": linear}).faults
    assert first.startswith("w: expected a weight of the model, as its shape [8, 4, 3, 3] says, got other values")


def test_float_weights_that_the_file_quantises(write):
    weight = pruned(8, 4, 3, 3)
    weight[0, 0, 0, 0] = 0.004  # nothing in steps of a hundredth
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "step", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["float"]),
        conv("float"),
    ]
    constants = {"w": weight.numpy(), "step": np.float32(0.03), "zero": np.int8(0)}
    audit = audit_onnx(write(nodes, constants), {"conv": weight})
    assert (audit.faults, audit.weights[0].copies) == ((), ("w",))
    assert audit.tensors[0].num_zeros == int((torch.round(weight / 0.03) == 0).sum()) > int((weight == 0).sum())


@pytest.mark.parametrize(
    ("nodes", "how"),
    [
        (
            [helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"])],
            "in a node QLinearConv",
        ),
        ([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "in a node MatMulInteger"),
        (
            [helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), conv("f")],
            "without DequantizeLinear for a node Conv",
        ),
        (
            [
                helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["f", "s"], ["m"]),
                helper.make_node("Reshape", ["m", "s"], ["r"]),
                conv("r"),
            ],
            "and computed otherwise for a node Conv",
        ),
        (
            [helper.make_node("DequantizeLinear", ["w", "blocks"], ["f"]), conv("f")],
            "with scales that are not constant, one or one for each channel",
        ),
        (
            [helper.make_node("DequantizeLinear", ["w", "x"], ["f"]), conv("f")],
            "with scales that are not constant, one or one for each channel",
        ),
    ],
)
def test_weights_that_are_quantised_otherwise_are_refused_by_name(write, nodes, how):
    constants = {"w": np.ones((2, 2, 1, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    constants["blocks"] = np.full((2, 1, 1, 1), 0.1, np.float32)
    with pytest.raises(CheckpointError) as error:
        audit_onnx(write(nodes, constants))
    assert f"read by DequantizeLinear (QDQ), got 'w' quantised {how}. Quantise in the QDQ format" in str(error.value)


@pytest.mark.parametrize(
    ("node", "stored"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), lambda weight: weight),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), lambda weight: weight.T),
        (helper.make_node("Gemm", ["w", "x"], ["y"]), lambda weight: weight),
        (helper.make_node("Gemm", ["w", "x"], ["y"], transA=1), lambda weight: weight.T),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), lambda weight: weight.T),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), lambda weight: weight),
    ],
)
def test_linear_layers(write, node, stored):
    weight = pruned(6, 5)
    audit = audit_onnx(write([node], {"w": stored(weight).numpy()}), {"fc.weight": weight})
    assert audit.faults == ()
    assert audit.tensors[0].shape == (6, 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(write, groups):
    weight = pruned(4, 6 // groups, 2, 2)  # (in, out/groups, *kernel)
    factors = np.random.default_rng(1).normal(size=6).astype(np.float32).reshape(groups, 1, -1, 1, 1)
    scaled = (weight.numpy().reshape(groups, -1, *weight.shape[1:]) * factors).reshape(weight.shape)
    audit = audit_onnx(write([conv("w", kind="ConvTranspose", group=groups)], {"w": scaled}), {"up": weight})
    assert audit.faults == ()
    assert audit.tensors[0].shape == (6, 4 // groups, 2, 2)
    assert audit_onnx(write([conv("w")], {"w": scaled}), {"up": weight}).faults  # not along that dimension


def test_weights_behind_constants_casts_and_transposes(write):
    weight = pruned(6, 5)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight.half().numpy())),
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]),
        helper.make_node("Identity", ["t"], ["i"]),
        helper.make_node("MatMul", ["x", "i"], ["y"]),
    ]
    audit = audit_onnx(write(nodes, {}), {"fc.weight": weight})
    assert audit.faults == ()
    assert audit.weights[0].copies == ("w",)


def test_weights_in_a_branch(write):
    weight = pruned(6, 4, 1, 1)
    value = helper.make_tensor_value_info("i", TensorProto.FLOAT, ["m"])
    inner = helper.make_graph([conv("w", "i")], "b", [], [value])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    constants = {"w": weight.numpy(), "c": np.array(True)}
    assert audit_onnx(write(nodes, constants), {"conv": weight}).faults == ()


def test_lost_zeros_are_a_fault(write):
    weight = pruned(8, 4, 3, 3)
    damaged = weight.numpy().copy()
    places = np.argwhere(damaged == 0)[:3]
    damaged[tuple(places.T)] = (1e-20, 0.5, -2.0)
    nodes = [conv("good", "a"), conv("bad")]
    audit = audit_onnx(write(nodes, {"good": weight.numpy(), "bad": damaged}), {"conv": weight})
    assert audit.weights[0].num_lost == 3
    assert audit.faults == ("conv: expected zeros where the model has them, got other values at 3 places of 'bad'",)


def test_a_weight_that_is_not_there_is_a_fault(write):
    first, second = pruned(8, 4, 3, 3), pruned(8, 4, 3, 3, seed=1)
    audit = audit_onnx(write([conv("w")], {"w": first.numpy()}), {"a": first, "b": second, "c": pruned(3, 3)})
    assert audit.faults == (
        "b: expected it in the file, got no tensor like it",
        "c: expected it in the file, got no tensor like it",
    )


def test_other_values_in_the_shape_of_a_weight_are_a_fault(write):
    weight = pruned(8, 4, 3, 3)
    changed = weight.numpy().copy()
    changed[7][changed[7] != 0] += 0.01
    nodes = [conv("w", "a"), conv("changed", "b"), conv("free")]
    audit = audit_onnx(
        write(nodes, {"w": weight.numpy(), "changed": changed, "free": np.ones((1, 1, 1, 1), np.float32)}),
        {"conv": weight},
    )
    assert audit.faults == (
        "changed: expected a weight of the model, as its shape [8, 4, 3, 3] says, got other values",
    )


def test_equal_weights_may_share_one_tensor(write):
    weight = pruned(8, 4, 3, 3)
    audit = audit_onnx(write([conv("w")], {"w": weight.numpy()}), {"a": weight, "b": weight.clone()})
    assert audit.faults == ()
    assert [found.copies for found in audit.weights] == [("w",), ("w",)]


def test_further_zeros_are_counted_and_no_fault(write):
    weight = pruned(8, 4, 3, 3)
    weight[0] = 1.0
    weight[0, 0, 0, 0] = 1e-9  # nothing in float16
    weight[5] = 0  # in both
    factors = torch.ones(8, 1, 1, 1)
    factors[3] = 0  # a batch norm with a gamma of zero
    audit = audit_onnx(write([conv("w")], {"w": (weight * factors).half().numpy()}), {"conv": weight})
    assert audit.faults == ()
    assert audit.weights[0].num_extra == 1 + int((weight[3] != 0).sum())
    assert audit.weights[0].num_dead == 1


def test_number_formats(write):
    weight = pruned(8, 4, 3, 3)
    for dtype in (np.float64, np.float16):
        assert audit_onnx(write([conv("w")], {"w": weight.numpy().astype(dtype)}), {"conv": weight}).faults == ()
    bits = (weight.bfloat16().view(torch.int16).numpy()).tobytes()
    stored = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=weight.shape, raw_data=bits)
    assert audit_onnx(write([conv("w")], {"w": stored}), {"conv": weight.bfloat16()}).faults == ()


def test_a_layer_of_zeros(write):
    zeros, weight = torch.zeros(4, 4, 1, 1), pruned(4, 4, 1, 1, sparsity=0.3)
    nodes, constants = [conv("z", "a"), conv("w")], {"z": zeros.numpy(), "w": weight.numpy()}
    audit = audit_onnx(write(nodes, constants), {"dead": zeros, "alive": weight})
    assert audit.faults == ()
    assert [found.copies for found in audit.weights] == [("z",), ("w",)]
    assert audit.tensors[0].num_dead_channels == 4


def test_damaged_graphs_are_errors_and_nothing_else(write):
    weight = pruned(6, 5)
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    path = write(nodes, {"w": weight.numpy()})
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            audit_onnx(path, {"fc.weight": weight})
        except CheckpointError:
            continue
    nodes[0] = helper.make_node("Transpose", ["w"], ["t"], perm=[5, 5])
    with pytest.raises(CheckpointError, match="expected a valid ONNX graph, got"):
        audit_onnx(write(nodes, {"w": weight.numpy()}))


@pytest.mark.parametrize("groups", [3, 8, 0, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(write, groups):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=groups)
    with pytest.raises(CheckpointError, match=r"expected a valid ONNX graph, got"):
        audit_onnx(write([node], {"w": pruned(4, 2, 1, 1)}))


@pytest.mark.parametrize("is_passed", [True, False])
def test_weights_of_functions_are_counted(write, is_passed):
    weight = pruned(6, 4, 1, 1)
    inside = (
        [] if is_passed else [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight.numpy()))]
    )
    opset = [helper.make_opsetid("", 18)]
    names = ["x", "k"] if is_passed else ["x"]
    function = helper.make_function("own", "F", names, ["y"], [*inside, conv("k")], opset)
    path = write([helper.make_node("F", ["x", "w"][: len(names)], ["y"], domain="own")], {"w": weight.numpy()})
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    path.write_bytes(model.SerializeToString())
    assert audit_onnx(path, {"conv": weight}).faults == ()
    lost = weight.clone()
    lost[:, 2:] = 0
    assert audit_onnx(path, {"conv": lost}).faults


def test_weights_that_are_not_counted_are_named(write):
    weights = {name: np.ones((16, 16), np.float32) for name in ("table", "second", "w")}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["table", "second"], ["t"]),  # a weight that is computed
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    audit = audit_onnx(write(nodes, {**weights, "anchors": np.ones((3, 4), np.float32)}))
    assert [tensor.name for tensor in audit.tensors] == ["w"]
    assert audit.others == ("second", "table")
