"""Compact weight files: safetensors in which a sparse tensor is a bit for each entry and the values that are not zero.

docs/files.md specifies the format byte by byte. Dense safetensors of any program are read as well.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import CheckpointError, MissingExtraError
from sparsedet.common.files import write_atomically

SUFFIX = ".safetensors"
KEY = "sparsedet"
ZSTD_LEVEL = 10

# A file may not unpack to more than this and this many times its own size. All zeros is the extreme that a real
# file can come near to, and 99 % of zeros give a ratio of about 300.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**28, 1000

# What a second entry or the mention in the metadata costs in the header.
_ENTRY_BYTES = 128

DType = Literal[
    "BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "BF16", "F32", "F64"
]  # fmt: skip
_DTYPES: dict[DType, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_NAMES: dict[torch.dtype, DType] = {dtype: name for name, dtype in _DTYPES.items()}


class Encoding(ConfigModel):
    """How a tensor is stored that is not simply an entry of the safetensors file.

    Attributes:
        dtype: its type when it is restored.
        shape: its shape.
        stored: type of the stored values; F16 where values were rounded.
        bitmask: whether a bit for each entry comes first and only values follow that are not zero.
        zstd: whether the bytes are one zstd frame, with the bytes of the values sorted by their place.
    """

    dtype: DType
    shape: tuple[Annotated[int, Field(ge=0, lt=2**48)], ...]
    stored: DType
    bitmask: bool = False
    zstd: bool = False

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the restored tensor."""
        return self.numel * _DTYPES[self.dtype].itemsize


class Header(ConfigModel):
    """What the metadata entry ``sparsedet`` of a compact file says, as JSON.

    Attributes:
        format_version: version of the format.
        encodings: by name, those tensors that are not stored as they are.
        info: what the writer has to say of the weights.
    """

    format_version: Literal[1] = 1
    encodings: dict[str, Encoding] = Field(default_factory=dict)
    info: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class WeightsFile:
    """The content of a safetensors file.

    Attributes:
        state: the tensors by name, dense.
        info: what its writer says of them; None where sparsedet did not write it.
    """

    state: dict[str, Tensor]
    info: dict[str, Any] | None


def save_compact(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    fp16: bool = False,
    zstd: bool = False,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors in the form that is smaller for each of them, dense or as a bitmask with values.

    Args:
        path: file to write, replaced as a whole.
        state: tensors by name, such as a state dict.
        fp16: round floating-point tensors of two and more dimensions to half precision, but none in which a value
            would become infinite; otherwise `load_compact` gives back the same bits.
        zstd: compress on top of that; needs the extra ``zstd``.
        info: plain data that is kept with the weights.

    Raises:
        CheckpointError: a tensor is of a kind that cannot be stored.
        MissingExtraError: zstandard is not installed.
        StorageError: the file cannot be written.
    """
    entries, encodings = {}, {}
    for name, tensor in sorted(state.items()):
        _check_storable(path, name, tensor)
        entries[name], encoding = _encode(tensor.detach().cpu(), fp16, zstd)
        if encoding is not None:
            encodings[name] = encoding
    header = Header(encodings=encodings, info=dict(info or {}))
    _write(path, entries, {KEY: header.model_dump_json()})


def save_dense(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as plain safetensors, which every program reads.

    Raises:
        CheckpointError: a tensor is of a kind that cannot be stored.
        StorageError: the file cannot be written.
    """
    for name, tensor in state.items():
        _check_storable(path, name, tensor)
    _write(path, {name: tensor.detach().cpu() for name, tensor in state.items()}, {"format": "pt"})


def load_compact(path: Path) -> dict[str, Tensor]:
    """Return the dense tensors of a compact or plain safetensors file by name, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or hostile.
        MissingExtraError: it is compressed and zstandard is not installed.
    """
    return read_weights(path).state


def read_weights(path: Path) -> WeightsFile:
    """Do what `load_compact` does, and also return what the writer said of the weights.

    Raises:
        CheckpointError: the file is missing, damaged or hostile.
        MissingExtraError: it is compressed and zstandard is not installed.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected a safetensors file, got {kind}. Check the path.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            _check_names(path)
            names = file.keys()
            header = _header(file.metadata() or {})
            encodings = {} if header is None else header.encodings
            _check_size(encodings, path.stat().st_size)
            if unknown := encodings.keys() - set(names):
                raise ValueError(f"'{min(unknown)}' is described but not there")
            state = {name: _decode(name, file.get_tensor(name), encodings.get(name)) for name in names}
    except (MissingExtraError, MemoryError):  # not the file's fault
        raise
    except Exception as error:  # there are many kinds for a damaged file
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, got an unreadable one ({reason}). "
            "It may be truncated or damaged: write it again from its checkpoint."
        ) from error
    return WeightsFile(state, None if header is None else header.info)


def num_dense_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of the tensors as they are, without any file's header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


# --- writing --------------------------------------------------------------------------------------------------


def _write(path: Path, entries: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # layers that share a weight have an entry each: safetensors refuses tensors that share memory
    content = save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in entries.items()}, metadata
    )
    write_atomically(path, lambda stream: stream.write(content))


def _check_storable(path: Path, name: str, tensor: object) -> None:
    if name == "__metadata__":
        raise CheckpointError(f"{path}: expected tensor names that safetensors allows, got '{name}'. Rename it.")
    if not isinstance(tensor, Tensor):
        got = type(tensor).__name__
    elif tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.dtype not in _NAMES:
        got = f"{tensor.layout} {tensor.dtype}" + (" without values" if tensor.is_meta else "")
    else:
        return
    raise CheckpointError(
        f"{path}: expected dense tensors of numbers or truth values, got '{name}' ({got}). Convert it, or leave it out."
    )


def _encode(tensor: Tensor, fp16: bool, zstd: bool) -> tuple[Tensor, Encoding | None]:
    """Return the entry of a tensor in the file, and how to read it if it is not the tensor itself."""
    stored = _rounded(tensor) if fp16 else tensor
    dtype, kind, shape = _NAMES[tensor.dtype], _NAMES[stored.dtype], tuple(tensor.shape)
    bits = _bits(stored)
    keep = bits != 0
    values = bits[keep]
    bitmask = -(-bits.size // 8) + values.nbytes + _ENTRY_BYTES < bits.nbytes
    mask = np.packbits(keep, bitorder="little").tobytes() if bitmask else b""
    if not bitmask:
        values = bits
    if zstd:
        packed = _compress(mask + _planes(values).tobytes())
        if len(packed) + _ENTRY_BYTES < len(mask) + values.nbytes:
            encoding = Encoding(dtype=dtype, shape=shape, stored=kind, bitmask=bitmask, zstd=True)
            return _as_bytes(packed), encoding
    if bitmask:
        return _as_bytes(mask + values.tobytes()), Encoding(dtype=dtype, shape=shape, stored=kind, bitmask=True)
    return stored, None if kind == dtype else Encoding(dtype=dtype, shape=shape, stored=kind)


def _rounded(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    half = tensor.half()
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def _bits(tensor: Tensor) -> NDArray[Any]:
    """Return the entries as flat unsigned integers; only +0.0 is zero then."""
    flat = tensor.reshape(-1).contiguous().view(torch.uint8).numpy()
    return flat.view(f"u{tensor.element_size()}")


def _planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Sort the bytes by their place within a value: exponents resemble each other, mantissas do not."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)


def _as_bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


# --- reading --------------------------------------------------------------------------------------------------


def _check_names(path: Path) -> None:
    """Refuse a header that names something twice, of which safetensors would take the last."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice in its header")
        return found

    with path.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        json.loads(stream.read(num_bytes), object_pairs_hook=distinct)


def _header(metadata: Mapping[str, str]) -> Header | None:
    if KEY not in metadata:
        return None
    try:
        return Header.model_validate_json(metadata[KEY], strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"its metadata, damaged or of a newer sparsedet: {place}: {fault['msg']}") from error


def _check_size(encodings: Mapping[str, Encoding], num_file_bytes: int) -> None:
    num_bytes = sum(encoding.num_bytes for encoding in encodings.values())
    most = MAX_UNPACKED_BYTES + MAX_RATIO * num_file_bytes
    if num_bytes > most:
        raise ValueError(f"it claims to unpack to {num_bytes} bytes, more than the {most} that its size makes likely")


def _decode(name: str, entry: Tensor, encoding: Encoding | None) -> Tensor:
    if entry.dtype not in _NAMES:
        raise ValueError(f"'{name}' is of {entry.dtype}, which is not read here")
    if encoding is None:
        return entry.clone()  # the entry is a view of the file, which may change
    dtype, stored = _DTYPES[encoding.dtype], _DTYPES[encoding.stored]
    if stored != dtype and (stored != torch.float16 or not dtype.is_floating_point):
        raise ValueError(f"'{name}' would be {encoding.dtype} made of {encoding.stored}")
    if encoding.bitmask or encoding.zstd:
        if entry.dtype != torch.uint8 or entry.ndim != 1:
            raise ValueError(f"'{name}' is not a row of bytes")
        bits = _unpack(name, entry.numpy(), encoding, stored.itemsize)
        values = torch.from_numpy(bits).view(stored).reshape(encoding.shape)
    else:
        values = entry
    if values.dtype != stored or tuple(values.shape) != encoding.shape:
        raise ValueError(f"'{name}' is {values.dtype} {tuple(values.shape)}, described as another")
    return values.clone() if dtype == stored else values.to(dtype)


def _unpack(name: str, content: NDArray[np.uint8], encoding: Encoding, itemsize: int) -> NDArray[Any]:
    num_mask_bytes = -(-encoding.numel // 8) if encoding.bitmask else 0
    if encoding.zstd:
        content = _decompress(name, content, num_mask_bytes + encoding.numel * itemsize)
    if content.size < num_mask_bytes:
        raise ValueError(f"'{name}' ends within its bitmask")
    keep = np.unpackbits(content[:num_mask_bytes], bitorder="little").view(bool)
    num_values = int(keep.sum()) if encoding.bitmask else encoding.numel
    if content.size != num_mask_bytes + num_values * itemsize:
        raise ValueError(
            f"'{name}' has {content.size - num_mask_bytes} bytes of values instead of {num_values * itemsize}"
        )
    rest = content[num_mask_bytes:]
    rest = rest.reshape(itemsize, -1).T if encoding.zstd else rest.reshape(-1, itemsize)
    values = np.ascontiguousarray(rest).reshape(-1).view(f"u{itemsize}")
    if not encoding.bitmask:
        return values
    if keep[encoding.numel :].any():
        raise ValueError(f"'{name}' has a bitmask longer than its shape")
    bits = np.zeros(encoding.numel, values.dtype)
    bits[keep[: encoding.numel]] = values
    return bits


# --- zstd -----------------------------------------------------------------------------------------------------


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "zstd: expected the package zstandard, got none. Install it with pip install 'sparsedet[zstd]'."
        ) from error
    return zstandard


def _compress(content: bytes) -> bytes:
    return cast(bytes, _zstandard().ZstdCompressor(level=ZSTD_LEVEL).compress(content))


def _decompress(name: str, content: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    zstandard, frame = _zstandard(), content.tobytes()
    num_bytes = zstandard.get_frame_parameters(frame).content_size
    if num_bytes > most:  # also where the frame does not say it: that is a very large number
        raise ValueError(f"'{name}' claims to unpack to {num_bytes} bytes, more than its {most}")
    unpacked = zstandard.ZstdDecompressor().decompress(frame, max_output_size=most, allow_extra_data=False)
    return np.frombuffer(bytearray(unpacked), np.uint8)  # torch wants memory that may be written
