"""Compact files: the same bits come back, the sizes are those of the specification, and hostile files are refused."""

import contextlib
import json
import struct

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparsedet.common.errors import CheckpointError, MissingExtraError
from sparsedet.export import compact
from sparsedet.export.compact import load_compact, num_dense_bytes, read_weights, save_compact, save_dense

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bits(found[name]) == bits(tensor), name


def sparse(*shape, sparsity=0.9, seed=0):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=random)
    return values.masked_fill_(torch.rand(shape, generator=random) < sparsity, 0.0)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    content = random.integers(0, 256, (int(np.prod(shape)), dtype.itemsize), dtype=np.uint8)
    content[random.random(len(content)) < draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))] = 0
    if dtype == torch.bool:
        content &= 1
    return (
        torch.frombuffer(bytearray(content.tobytes()), dtype=dtype, count=len(content)).clone().reshape(shape)
        if len(content)
        else torch.empty(shape, dtype=dtype)
    )


@given(
    state=st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name.isprintable()), tensors(), max_size=4
    ),
    zstd=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_any_tensors_come_back_with_the_same_bits(state, zstd, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_compact(path, state, zstd=zstd)
    assert_same_bits(load_compact(path), state)


@pytest.mark.parametrize("zstd", [False, True])
def test_minus_zero_and_nan_of_sparse_and_dense_tensors_come_back(zstd, tmp_path):
    nan = torch.tensor([0x7FC00123, -0x3FFFFF], dtype=torch.int32).view(torch.float32)  # two payloads
    special = torch.cat([torch.tensor([-0.0, 0.0, float("inf"), 1e-45]), nan])
    state = {"dense": special.repeat(100), "sparse": torch.cat([special, torch.zeros(4000)]).reshape(2, -1)}
    save_compact(tmp_path / "f.safetensors", state, zstd=zstd)
    assert_same_bits(load_compact(tmp_path / "f.safetensors"), state)


@pytest.mark.parametrize("zstd", [False, True])
def test_fp16_gives_the_rounded_weights_and_leaves_the_rest(zstd, tmp_path):
    state = {
        "sparse": sparse(32, 64, 3, 3),
        "dense": torch.randn(64, 33),
        "double": torch.randn(8, 8, dtype=torch.float64),
        "tiny": torch.full((20, 20), -1e-12),
        "large": torch.full((4, 4), 1e5),
        "variance": torch.tensor([1e-9, 1.0 + 2**-20]),
        "steps": torch.tensor(12345),
        "flags": torch.tensor([[True, False]] * 40),
        "bfloat16": torch.randn(9, 9).bfloat16(),
    }
    save_compact(tmp_path / "f.safetensors", state, fp16=True, zstd=zstd)
    rounded = {name: state[name].half().to(state[name].dtype) for name in ("sparse", "dense", "double", "tiny")}
    assert_same_bits(load_compact(tmp_path / "f.safetensors"), state | rounded)


def test_a_sparse_tensor_costs_a_bit_for_each_entry_and_its_values(tmp_path):
    weight = sparse(64, 64, 3, 3)
    num_entries, num_values = weight.numel(), int(weight.count_nonzero())
    for fp16, num_value_bytes in ((False, 4), (True, 2)):
        path = tmp_path / "f.safetensors"
        save_compact(path, {"w": weight, "fc": torch.ones(1000, 64)}, fp16=fp16)
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        expected = num_entries // 8 + num_values * num_value_bytes
        begin, end = header["w"]["data_offsets"]
        assert end - begin == expected
        assert header["w"]["dtype"] == "U8"
        assert header["fc"]["dtype"] == ("F16" if fp16 else "F32")
        assert path.stat().st_size < expected + 64_000 * num_value_bytes + 700
    assert num_dense_bytes({"w": weight}) == 4 * num_entries


def test_a_file_is_what_the_specification_says(tmp_path):
    weight = torch.zeros(4, 100)
    weight[0, 3], weight[3, 99] = 1.0, -2.0
    save_compact(tmp_path / "f.safetensors", {"w": weight, "bias": torch.ones(3)}, info={"by": "hand"})
    entries = load_file(tmp_path / "f.safetensors")
    assert torch.equal(entries["bias"], torch.ones(3))
    mask = bytearray(50)
    mask[0], mask[49] = 1 << 3, 1 << 7  # entries 3 and 399
    assert entries["w"].numpy().tobytes() == bytes(mask) + struct.pack("<ff", 1.0, -2.0)
    content = (tmp_path / "f.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["sparsedet"]) == {
        "format_version": 1,
        "encodings": {"w": {"dtype": "F32", "shape": [4, 100], "stored": "F32", "bitmask": True, "zstd": False}},
        "info": {"by": "hand"},
    }
    save_compact(tmp_path / "z.safetensors", {"w": weight.repeat(8, 1)}, zstd=True)
    unpacked = zstandard.decompress(load_file(tmp_path / "z.safetensors")["w"].numpy().tobytes())
    one, two = struct.pack("<f", 1.0), struct.pack("<f", -2.0)
    planes = b"".join(bytes([one[place], two[place]] * 8) for place in range(4))
    assert unpacked == bytes(mask) * 8 + planes


def test_tied_weights_are_stored_each_and_views_as_they_are_seen(tmp_path):
    whole = sparse(64, 64)
    state = {"a": whole, "b": whole, "transposed": whole.T, "part": whole[3:9], "parameter": torch.nn.Parameter(whole)}
    for write in (save_compact, save_dense):
        write(tmp_path / "f.safetensors", state)
        assert_same_bits(
            load_compact(tmp_path / "f.safetensors"), {name: value.detach() for name, value in state.items()}
        )


def test_plain_files_are_those_of_safetensors(tmp_path):
    state = {"w": sparse(8, 8), "n": torch.tensor(3)}
    save_dense(tmp_path / "ours.safetensors", state)
    assert_same_bits(load_file(tmp_path / "ours.safetensors"), state)
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    theirs = read_weights(tmp_path / "theirs.safetensors")
    assert_same_bits(theirs.state, state)
    assert theirs.info is None


def test_what_is_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "f.safetensors"
    save_dense(path, {"w": torch.ones(1000)})
    loaded = load_compact(path)["w"]
    with path.open("r+b") as stream:
        stream.seek(-4000, 2)
        stream.write(bytes(4000))
    assert torch.equal(loaded, torch.ones(1000))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, 2).to_sparse(), "sparse_coo"),
        (torch.ones(2, device="meta"), "without values"),
        ([1, 2], "list"),
    ],
)
def test_other_kinds_of_tensors_are_refused_by_name(value, got, tmp_path):
    for write in (save_compact, save_dense):
        with pytest.raises(CheckpointError, match=rf"expected dense tensors .* got 'odd' \(.*{got}.*\)"):
            write(tmp_path / "f.safetensors", {"fine": torch.ones(2), "odd": value})
    assert not list(tmp_path.iterdir())


def test_zstd_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    save_compact(tmp_path / "z.safetensors", {"w": sparse(64, 64)}, zstd=True)
    before = (tmp_path / "z.safetensors").read_bytes()
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsedet\[zstd\]'"):
        load_compact(tmp_path / "z.safetensors")
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsedet\[zstd\]'"):
        save_compact(tmp_path / "z.safetensors", {"w": sparse(64, 64)}, zstd=True)
    assert (tmp_path / "z.safetensors").read_bytes() == before


# --- hostile files ---------------------------------------------------------------------------------------------


def write_raw(path, entries, encodings=None, metadata=None):
    """Write a safetensors file of (name, dtype, shape, bytes), which no writer checks."""
    header, data = [], b""
    if encodings is not None:
        metadata = {"sparsedet": json.dumps({"encodings": encodings})}
    if metadata is not None:
        header.append(f'"__metadata__": {json.dumps(metadata)}')
    for name, dtype, shape, content in entries:
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        header.append(f'"{name}": {json.dumps(entry)}')
        data += content
    text = ("{" + ", ".join(header) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def encoding(shape, dtype="F32", stored=None, bitmask=True, zstd=False, **more):
    return {"dtype": dtype, "shape": shape, "stored": stored or dtype, "bitmask": bitmask, "zstd": zstd, **more}


ONE = bytes([1]) + struct.pack("<f", 1.0)  # bitmask of 8 entries of which the first has a value


def test_a_file_written_by_hand_is_read(tmp_path):
    entries = [("w", "U8", [5], ONE), ("empty", "U8", [0], b""), ("odd", "U8", [2], b"\x02\x07")]
    encodings = {"w": encoding([2, 4]), "empty": encoding([3, 0]), "odd": encoding([3], "U8")}
    write_raw(tmp_path / "f.safetensors", entries, encodings)
    expected = torch.zeros(2, 4)
    expected[0, 0] = 1.0
    odd = torch.tensor([0, 7, 0], dtype=torch.uint8)
    assert_same_bits(load_compact(tmp_path / "f.safetensors"), {"w": expected, "empty": torch.ones(3, 0), "odd": odd})


frame = zstandard.ZstdCompressor().compress
HOSTILE = {
    "shape larger than the bitmask": ([("w", "U8", [5], ONE)], {"w": encoding([9])}, "bytes of values instead of"),
    "shape smaller than the bitmask": ([("w", "U8", [5], b"\x80" + bytes(4))], {"w": encoding([7])}, "longer than"),
    "empty": ([("w", "U8", [0], b"")], {"w": encoding([2, 4])}, "ends within its bitmask"),
    "more values than bits": ([("w", "U8", [9], ONE + bytes(4))], {"w": encoding([8])}, "8 bytes of values"),
    "fewer values than bits": ([("w", "U8", [4], ONE[:4])], {"w": encoding([8])}, "3 bytes of values"),
    "half a value": ([("w", "U8", [3], ONE[:3])], {"w": encoding([8], "F32", "F32")}, "2 bytes of values instead"),
    "size bomb": ([("w", "U8", [5], ONE)], {"w": encoding([2**47])}, "claims to unpack to 562949953421312 bytes"),
    "bomb of many": (
        [(f"w{index}", "U8", [5], ONE) for index in range(9)],
        {f"w{index}": encoding([2**24]) for index in range(9)},
        "claims to unpack to 603979776 bytes",
    ),
    "bomb of dimensions": ([("w", "U8", [5], ONE)], {"w": encoding([2**40] * 50)}, "claims to unpack"),
    "negative shape": ([("w", "U8", [5], ONE)], {"w": encoding([-8])}, "encodings.w.shape.0"),
    "wild shape": ([("w", "U8", [5], ONE)], {"w": encoding("x")}, "encodings.w.shape"),
    "unknown type": ([("w", "U8", [5], ONE)], {"w": encoding([8], "F99")}, "encodings.w.dtype"),
    "unknown key": ([("w", "U8", [5], ONE)], {"w": encoding([8], run="rm")}, "encodings.w.run"),
    "not a row of bytes": ([("w", "F32", [1], bytes(4))], {"w": encoding([8])}, "not a row of bytes"),
    "bytes in rows": ([("w", "U8", [1, 5], ONE)], {"w": encoding([8])}, "not a row of bytes"),
    "numbers from wider ones": (
        [("w", "U8", [9], bytes([1]) + bytes(8))], {"w": encoding([8], "F32", "F64")}, "would be F32 made of F64",
    ),
    "integers from halves": (
        [("w", "F16", [4], bytes(8))], {"w": encoding([4], "I32", "F16", bitmask=False)}, "would be I32 made of F16",
    ),
    "entry of another type": (
        [("w", "F32", [4], bytes(16))], {"w": encoding([4], "F32", "F16", bitmask=False)}, "described as another",
    ),
    "entry of another shape": (
        [("w", "F16", [4], bytes(8))], {"w": encoding([2, 2], "F32", "F16", bitmask=False)}, "described as another",
    ),
    "described, not there": ([("v", "U8", [5], ONE)], {"w": encoding([8])}, "'w' is described but not there"),
    "no zstd frame": ([("w", "U8", [5], ONE)], {"w": encoding([8], zstd=True)}, ""),
    "zstd bomb": (
        [("w", "U8", [len(frame(bytes(10**8)))], frame(bytes(10**8)))],
        {"w": encoding([8], zstd=True)},
        "claims to unpack to 100000000 bytes, more than its 33",
    ),
    "zstd without its size": (
        [("w", "U8", [len(zstandard.ZstdCompressor(write_content_size=False).compress(ONE))],
          zstandard.ZstdCompressor(write_content_size=False).compress(ONE))],
        {"w": encoding([8], zstd=True)},
        "claims to unpack",
    ),
    "more after the zstd frame": (
        [("w", "U8", [len(frame(ONE)) + 4], frame(ONE) + b"more")], {"w": encoding([8], zstd=True)}, "",
    ),
    "cut zstd frame": ([("w", "U8", [len(frame(ONE)) - 3], frame(ONE)[:-3])], {"w": encoding([8], zstd=True)}, ""),
    "type that is packed": ([("w", "F8_E4M3", [4], bytes(4))], None, "float8"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    entries, encodings, message = HOSTILE[name]
    path = tmp_path / "f.safetensors"
    write_raw(path, entries, encodings)
    with pytest.raises(CheckpointError, match=r"expected a whole safetensors file, got an unreadable one") as caught:
        load_compact(path)
    assert message in str(caught.value)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    one = '"w": {"dtype": "%s", "shape": [1], "data_offsets": [0, 4]}'
    text = f"{{{one % 'F32'}, {one % 'I32'}}}".encode()
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match="a name stands twice in its header"):
        load_compact(tmp_path / "f.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 2}', '{"encodings": 3}', "[" * 100_000])
def test_metadata_that_is_not_ours_is_refused(text, tmp_path):
    write_raw(tmp_path / "f.safetensors", [("w", "U8", [5], ONE)], metadata={"sparsedet": text})
    with pytest.raises(CheckpointError, match="metadata, damaged or of a newer sparsedet"):
        load_compact(tmp_path / "f.safetensors")


def test_truncated_files_wrong_headers_and_other_things_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(CheckpointError, match=r"expected a safetensors file, got nothing\. Check the path"):
        load_compact(path)
    with pytest.raises(CheckpointError, match=r"expected a safetensors file, got a folder\. Check the path"):
        load_compact(tmp_path)
    save_compact(path, {"w": sparse(64, 64), "bias": torch.ones(9)}, zstd=True)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    damaged = [whole[:length] for length in (0, 7, 8, 100, 8 + header, len(whole) - 1)]
    damaged += [whole + b"x", struct.pack("<Q", 2**62) + whole[8:], struct.pack("<Q", header + 8) + whole[8:]]
    damaged += [whole.replace(b'"bias"', b'"w"   '), b"PK\x03\x04" + whole]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="It may be truncated or damaged: write it again"):
            load_compact(path)


@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(deadline=None, max_examples=150)
def test_a_changed_byte_gives_other_values_or_an_error_and_nothing_else(place, value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_compact(path, {"w": sparse(16, 64), "bias": torch.ones(9)}, zstd=True)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in load_compact(path).values())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.safetensors"
    save_compact(path, {"w": torch.ones(3)})
    before = path.read_bytes()
    monkeypatch.setattr(compact, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_compact(path, {"w": torch.zeros(3)})
    assert path.read_bytes() == before
