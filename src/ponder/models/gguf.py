"""Reads GGUF version 2 and 3 files. Little endian; nothing is read but the header, which is mapped for as long as that takes.

    magic "GGUF" | u32 version | u64 tensors | u64 pairs | pairs: key, u32 type, value | tensor infos | padding | tensor data

Every count and length is compared with the bytes that are left before anything is allocated, so a damaged or foreign
file gives one BadModelFile line with the file, the reason and the offset, and memory stays within the size of the file.
A well-formed file with a tensor type that we do not read gives Unsupported.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.dequantize import KINDS, Kind
from ponder.models.files import ModelFile

MAX_DEPTH = 4  # arrays of arrays
MAX_DIMS = 4
MIN_INFO_NBYTES = 8 + 4 + 8 + 4 + 8  # tensor info with an empty name and one dimension
MIN_PAIR_NBYTES = 8 + 4 + 1
STRING, ARRAY = 8, 9
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
KIND_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. shape is (rows, columns) or (columns,): slowest dimension first, unlike in the file."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def row_nbytes(self) -> int:
        """A vector is one row."""
        return self.kind.row_nbytes(self.shape[-1])


@dataclass(frozen=True)
class Gguf:
    """A read header and the open file. metadata values: int, float, bool, str, list of str, numpy array of numbers."""

    file: ModelFile
    metadata: dict[str, object]
    tensors: dict[str, TensorInfo]

    @property
    def path(self) -> Path:
        return self.file.path

    def blocks(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Raw storage of rows start:stop of a tensor as uint8 [rows, bytes per row], read now. A vector is one row.

        Raises BadModelFile when the file changed since it was opened.
        """
        info = self.tensors[name]
        num_rows, nbytes = math.prod(info.shape[:-1]), info.row_nbytes
        stop = num_rows if stop is None else min(stop, num_rows)
        return self.file.read(info.offset + start * nbytes, max(0, stop - start) * nbytes).reshape(-1, nbytes)


def read_gguf(path: Path) -> Gguf:
    """The header of the GGUF file at `path`. Raises BadModelFile, or Unsupported for tensor types and versions we do not read."""
    file = ModelFile(path)
    head = _Cursor(path, _mapped(file))
    if bytes(head.take(4, "magic")) != b"GGUF":
        raise BadModelFile(f"{path}: does not begin with 'GGUF'; not a GGUF file")
    _check_version(path, head.u32("version"))
    num_tensors = head.count("tensor", MIN_INFO_NBYTES)
    num_pairs = head.count("metadata pair", MIN_PAIR_NBYTES)
    metadata = _read_metadata(head, num_pairs)
    if _number(metadata.get("split.count"), 1) > 1:
        raise Unsupported(f"{path}: one part of a split model; join the parts into one file first")
    tensors = _read_infos(head, num_tensors, _alignment(path, metadata))
    _check_overlap(path, tensors, file.size)
    file.check()
    return Gguf(file, metadata, tensors)


def _mapped(file: ModelFile) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.descriptor, file.size, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: the file became shorter just now
        raise BadModelFile(f"{file.path}: cannot be read: {error}") from error


class _Cursor:
    """Reads forward; every read is checked against the end of the file."""

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path = path
        self.view = view
        self.at = 0

    def bad(self, why: str, at: int | None = None) -> BadModelFile:
        return BadModelFile(f"{self.path}: {why} at byte {self.at if at is None else at}")

    def take(self, nbytes: int, what: str) -> memoryview:
        left = len(self.view) - self.at
        if nbytes > left:
            raise self.bad(f"{what} needs {nbytes} bytes, but {left} are left,")
        self.at += nbytes
        return self.view[self.at - nbytes : self.at]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, min_nbytes: int) -> int:
        """A u64 number of things that take at least min_nbytes each in the rest of the file."""
        at, num = self.at, self.u64(f"{what} count")
        if num * min_nbytes > len(self.view) - self.at:
            raise self.bad(f"{what} count {num} cannot fit in the {len(self.view) - self.at} bytes that are left", at)
        return num

    def string(self, what: str) -> str:
        at = self.at
        raw = self.take(self.u64(f"length of {what}"), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not UTF-8", at) from error

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize, what), dtype=dtype if kind != 7 else np.uint8).astype(dtype)[0].item()
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise self.bad(f"{what} has unknown value type {kind}", self.at - 4)
        if depth == MAX_DEPTH:
            raise self.bad(f"{what} nests arrays deeper than {MAX_DEPTH}")
        return self.array(what, depth)

    def array(self, what: str, depth: int) -> object:
        kind = self.u32(f"element type of {what}")
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            raw = self.take(self.count(f"{what} element", dtype.itemsize) * dtype.itemsize, what)
            return np.frombuffer(raw, dtype=dtype if kind != 7 else np.uint8).astype(dtype)
        if kind == STRING:
            return self.strings(what)
        return [self.value(kind, what, depth + 1) for _ in range(self.count(f"{what} element", 12))]

    def strings(self, what: str) -> list[str]:
        """`string` many times, without the cost of a call for each: vocabularies have 10^5 of them."""
        num, at, view, end = self.count(f"{what} element", 8), self.at, self.view, len(self.view)
        texts: list[str] = []
        length = struct.Struct("<Q").unpack_from
        for _ in range(num):
            stop = at + 8 + length(view, at)[0] if at + 8 <= end else end + 1
            if stop > end:
                raise self.bad(f"string {len(texts)} of {num} in {what} runs past the end of the file", at)
            try:
                texts.append(str(view[at + 8 : stop], "utf-8"))
            except UnicodeDecodeError as error:
                raise self.bad(f"string {len(texts)} in {what} is not UTF-8", at) from error
            at = stop
        self.at = at
        return texts


def _check_version(path: Path, version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0 and version >> 24 in (2, 3):
        raise Unsupported(f"{path}: a big-endian GGUF file; only little-endian ones are read")
    raise Unsupported(f"{path}: GGUF version {version} at byte 4; versions 2 and 3 are read")


def _read_metadata(head: _Cursor, num: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for i in range(num):
        at, key = head.at, head.string(f"key of metadata pair {i}")
        if key in metadata:
            raise head.bad(f"metadata key {key!r} is there twice, again", at)
        metadata[key] = head.value(head.u32(f"type of {key!r}"), f"value of {key!r}")
    return metadata


def _number(value: object, default: int) -> int:
    return int(value) if isinstance(value, int | np.integer) else default


def _alignment(path: Path, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadModelFile(f"{path}: general.alignment is {alignment!r}; must be a power of two up to 2^20")
    return alignment


def _read_infos(head: _Cursor, num: int, alignment: int) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for i in range(num):
        at, name = head.at, head.string(f"name of tensor {i}")
        if name in found:
            raise head.bad(f"tensor {name!r} is there twice, again", at)
        found[name] = _read_info(head, name, alignment)
    start = -(-head.at // alignment) * alignment
    return {name: TensorInfo(name, info.shape, info.kind, start + info.offset, info.nbytes) for name, info in found.items()}


def _read_info(head: _Cursor, name: str, alignment: int) -> TensorInfo:
    """One tensor info; its offset is still relative to the start of the tensor data."""
    at, num_dims = head.at, head.u32(f"number of dimensions of {name!r}")
    if not 1 <= num_dims <= MAX_DIMS:
        raise head.bad(f"tensor {name!r} has {num_dims} dimensions; must be 1 to {MAX_DIMS},", at)
    dims = [head.u64(f"dimension of {name!r}") for _ in range(num_dims)]
    code = head.u32(f"type of {name!r}")
    if KIND_NAMES.get(code) not in KINDS:
        known = ", ".join(KINDS)
        raise Unsupported(f"{head.path}: tensor {name!r} has type {KIND_NAMES.get(code, code)} at byte {head.at - 4}; types read are {known}")
    kind = KINDS[KIND_NAMES[code]]
    if 0 in dims or dims[0] % kind.values:
        raise head.bad(f"tensor {name!r} has dimensions {dims}; must be positive, the first a multiple of {kind.values} for {kind.name},", at)
    offset = head.u64(f"offset of {name!r}")
    if offset % alignment:
        raise head.bad(f"tensor {name!r} has offset {offset}, which is no multiple of the alignment {alignment},", head.at - 8)
    return TensorInfo(name, tuple(reversed(dims)), kind, offset, kind.row_nbytes(dims[0]) * math.prod(dims[1:]))


def _check_overlap(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if info.offset + info.nbytes > size:
            raise BadModelFile(f"{path}: tensor {info.name!r} needs bytes {info.offset} to {info.offset + info.nbytes}, but the file ends at {size}")
        if info.offset < end:
            raise BadModelFile(f"{path}: tensors {before!r} and {info.name!r} overlap at byte {info.offset}")
        end, before = info.offset + info.nbytes, info.name
