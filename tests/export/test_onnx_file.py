"""Reading ONNX files that are damaged or made to harm."""

import numpy as np
import pytest

from sparsedet.common.errors import CheckpointError, ConfigError, MissingExtraError, StorageError
from sparsedet.export import onnx_file
from sparsedet.export.onnx_file import read_onnx, require_onnx, write_onnx

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper


def model_of(*initializers, nodes=None, sparse=()):
    """A Gemm whose weight is the first initializer."""
    nodes = nodes or [helper.make_node("Gemm", ["x", initializers[0].name], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        list(initializers),
    )
    graph.sparse_initializer.extend(sparse)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weight(name="w"):
    return numpy_helper.from_array(np.array([[1, 0, 2], [3, 4, 0]], np.float32), name)


@pytest.fixture
def save(tmp_path):
    def write(model):
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


def test_a_whole_file_is_read_and_written_back(save, tmp_path):
    model = read_onnx(save(model_of(weight())))
    write_onnx(tmp_path / "again.onnx", model)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("type_name", "field", "entries"),
    [
        ("FLOAT16", "int32_data", 6),
        ("BFLOAT16", "int32_data", 6),
        ("INT64", "int64_data", 6),
        ("BOOL", "int32_data", 6),
        ("COMPLEX64", "float_data", 12),
        ("INT4", "int32_data", 3),
        ("FLOAT8E4M3FN", "int32_data", 6),
        ("DOUBLE", "double_data", 6),
        ("UINT32", "uint64_data", 6),
    ],
)
def test_every_number_format_has_its_length(save, type_name, field, entries):
    def tensor(count, is_raw):
        found = TensorProto(name="z", data_type=getattr(TensorProto, type_name), dims=[2, 3])
        if is_raw:
            found.raw_data = bytes(count)
        else:
            getattr(found, field).extend([0] * count)
        return found

    num_bytes = {"BOOL": 6, "INT4": 3, "FLOAT8E4M3FN": 6, "COMPLEX64": 48, "INT64": 48, "DOUBLE": 48, "UINT32": 24}
    for count, is_raw in ((entries, False), (num_bytes.get(type_name, 12), True)):
        read_onnx(save(model_of(weight(), tensor(count, is_raw))))
        for other in (count - 1, count + 1):
            with pytest.raises(CheckpointError, match=r"z: expected \d+ (bytes|entries), as its shape \[2, 3\] says"):
                read_onnx(save(model_of(weight(), tensor(other, is_raw))))


def test_text_may_be_in_a_file(save):
    read_onnx(save(model_of(weight(), helper.make_tensor("names", TensorProto.STRING, [2], [b"cat", b"dog"]))))


def test_damaged_files(save, tmp_path):
    with pytest.raises(CheckpointError, match="expected an ONNX file, got nothing"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match="expected an ONNX file, got a folder"):
        read_onnx(tmp_path)
    whole = model_of(weight()).SerializeToString()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], whole[3:]):
        with pytest.raises(CheckpointError, match=r"model.onnx: expected a (whole|valid) ONNX"):
            read_onnx(save(damaged))


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "weights.bin"])
def test_other_files_are_not_opened(save, tmp_path, place):
    (tmp_path / "weights.bin").write_bytes(bytes(24))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    with pytest.raises(CheckpointError, match="expected its values in the file itself, got a reference to another"):
        read_onnx(save(model_of(tensor)))
    tensor.data_location, tensor.raw_data = TensorProto.DEFAULT, bytes(24)  # a reference that says it is none
    with pytest.raises(CheckpointError, match="got a reference to another file"):
        read_onnx(save(model_of(tensor)))


def test_external_data_in_a_branch_is_found_too(save):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../x")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]
    with pytest.raises(CheckpointError, match="got a reference to another file"):
        read_onnx(save(model_of(weight(), nodes=nodes)))
    function = helper.make_function("f", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=tensor)], [])
    model = model_of(weight())
    model.functions.append(function)
    with pytest.raises(CheckpointError, match="got a reference to another file"):
        read_onnx(save(model))


@pytest.mark.parametrize("dims", [[2**40, 2**40], [2**62], [2, 4], [-1, 6], [-2, -3]])
def test_size_bombs_and_wrong_shapes(save, dims):
    tensor = weight()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(CheckpointError, match=r"model.onnx: w: expected (\d+ bytes|sizes of at least 0)"):
        read_onnx(save(model_of(tensor)))


def test_wrong_number_formats_and_sparse_tensors(save):
    tensor = weight()
    tensor.data_type = 99
    with pytest.raises(CheckpointError, match="w: expected a known number format, got type 99"):
        read_onnx(save(model_of(tensor)))
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, index, [2**40, 2**20])
    with pytest.raises(CheckpointError, match="expected dense weights, got a sparse tensor"):
        read_onnx(save(model_of(weight(), sparse=[sparse])))


def test_an_invalid_graph_is_refused(save):
    with pytest.raises(CheckpointError, match="expected a valid ONNX graph, got"):
        read_onnx(save(model_of(weight(), nodes=[helper.make_node("NoSuchOperator", ["x"], ["y"])])))


def test_too_large_for_one_file(save, monkeypatch, tmp_path):
    path = save(model_of(weight()))
    monkeypatch.setattr(onnx_file, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="expected at most 2 GiB"):
        read_onnx(path)
    with pytest.raises(ConfigError, match=r"model: expected at most 2 GiB.* got 0.00 GiB\. Export it as fp16"):
        write_onnx(path, model_of(weight()))
    assert path.exists()


def test_an_older_file_stays_where_writing_fails(save, tmp_path):
    path = save(b"older")
    (tmp_path / "model.onnx.partial").mkdir()
    with pytest.raises((StorageError, OSError)):
        write_onnx(path, model_of(weight()))
    assert path.read_bytes() == b"older"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"Run: pip install 'sparsedet\[onnx\]'"):
        require_onnx()


def test_garbage_is_refused(save):
    random = np.random.default_rng(0)
    whole = bytearray(model_of(weight()).SerializeToString())
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        try:
            read_onnx(save(bytes(damaged)))
        except CheckpointError:
            continue


def test_functions_that_make_far_more_of_a_file_are_refused(save):
    """Twenty-five functions, each of which calls the next one twice."""
    model, opsets = model_of(weight()), [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    for index in range(25):
        names = [("a", "t"), ("t", "b")]
        nodes = [helper.make_node(f"F{index + 1}", [x], [y], domain="own") for x, y in names]
        nodes = nodes if index < 24 else [helper.make_node("Relu", ["a"], ["b"])]
        model.functions.append(helper.make_function("own", f"F{index}", ["a"], ["b"], nodes, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("F0", ["y"], ["z"], domain="own"))
    with pytest.raises(
        CheckpointError, match=r"expected functions that can be put where they are called, got \d{9,} bytes"
    ):
        read_onnx(save(model))
    del model.functions[:-1]
    model.graph.node[-1].op_type = "F24"
    assert [node.op_type for node in read_onnx(save(model)).graph.node] == ["Gemm", "Relu"]
