"""The GGUF reader reads what was written, and answers every kind of damage with one clear line."""

import struct
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.gguf_writer import Stored, f32, gguf_bytes, tiny_llama, write
from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.dequantize import KINDS
from ponder.models.files import ModelFile
from ponder.models.gguf import MAX_DEPTH, read_gguf

TINY = tiny_llama(np.random.default_rng(0))
scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"])))
numbers = st.lists(st.integers(-(2**31), 2**31 - 1)).map(lambda x: np.array(x, dtype="<i4"))
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])))
values = st.one_of(scalars, numbers, texts, st.lists(numbers, min_size=1), st.lists(st.lists(texts, min_size=1), min_size=1))


def is_equal(a: object, b: object) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(is_equal, a, b))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "tiny.gguf"


@settings(max_examples=200, deadline=None)
@given(metadata=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter(lambda k: "." not in k), values, max_size=6))
def test_metadata_comes_back(file: Path, metadata: dict[str, object]):
    found = read_gguf(write(file, metadata, {})).metadata
    assert found.keys() == metadata.keys()
    assert all(is_equal(metadata[key], found[key]) for key in metadata)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [2, 3])
def test_tensors_come_back(file: Path, kind: str, version: int):
    raw = np.random.default_rng(1).integers(0, 256, (3, 5, 2 * KINDS[kind].nbytes), dtype=np.uint8)
    stored = Stored(kind, (3, 5, 2 * KINDS[kind].values), raw)
    file.write_bytes(gguf_bytes({"general.alignment": 64}, {"one": f32(np.ones(3)), "two": stored}, alignment=64, version=version))
    gguf = read_gguf(file)
    assert gguf.tensors["two"].shape == stored.shape
    assert np.array_equal(gguf.blocks("two"), raw.reshape(15, -1))
    assert gguf.blocks("one").view(np.float32).tolist() == [[1, 1, 1]]


def check_like_reference(path: Path) -> None:
    ours, theirs = read_gguf(path), reference.GGUFReader(path)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.kind.name, info.offset, info.nbytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
    for key in (k for k in theirs.fields if not k.startswith("GGUF.")):
        if len(theirs.fields[key].data) < 100:  # the reference takes seconds for vocabularies
            value = ours.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == theirs.fields[key].contents()


def test_like_reference_on_a_real_file(smollm2_path: Path):
    check_like_reference(smollm2_path)


def test_like_reference_on_a_file_of_its_writer(file: Path):
    metadata, tensors = TINY
    writer = reference.GGUFWriter(file, "llama")
    writer.add_array("tokenizer.ggml.tokens", metadata["tokenizer.ggml.tokens"])
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_uint64("big", 2**63)
    for name, tensor in tensors.items():
        kind = reference.GGMLQuantizationType[tensor.kind]
        rows = tensor.data.reshape(tensor.shape[0], -1) if len(tensor.shape) == 2 else tensor.data.view(np.float32)
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_like_reference(file)


def test_rows_are_read_when_asked_for(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The header of a real file is a few per cent of it, and of a tensor no more is read than the wanted rows."""
    read = []
    monkeypatch.setattr(ModelFile, "_fill", lambda file, view, offset: read.append(len(view)))
    gguf = read_gguf(smollm2_path)
    assert not read
    assert gguf.blocks("token_embd.weight", 5, 8).shape == (3, 576 // 32 * 34)
    assert read == [3 * 576 // 32 * 34]


WHOLE = gguf_bytes(*TINY)
KEY_AT = 24  # of the first metadata pair


def patched(at: int, form: str, value: int) -> bytes:
    raw = struct.pack(form, value)
    return WHOLE[:at] + raw + WHOLE[at + len(raw) :]


def one_tensor(shape: tuple[int, ...], *, kind: str = "F32", nbytes: int = 4096) -> bytes:
    return gguf_bytes({}, {"t": Stored(kind, shape, np.zeros(nbytes, dtype=np.uint8))})


def info_field(raw: bytes, name: str, skip: int) -> int:
    """Position `skip` bytes after the name of a tensor."""
    return raw.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + skip


T1 = one_tensor((1024,))
TWO = gguf_bytes({}, {"a": f32(np.ones(8)), "b": f32(np.ones(8))})
STRINGS = gguf_bytes({"a": ["xyz"]}, {})
LONG_STRING = gguf_bytes({"a": ["x" * 50]}, {})
B_OFFSET = info_field(TWO, "b", 4 + 8 + 4)
DAMAGED = {
    "empty": (b"", "cannot be read"),
    "short": (WHOLE[:3], "magic needs 4 bytes, but 3 are left, at byte 0"),
    "foreign": (b"PK\x03\x04" + b"\0" * 99, "not a GGUF file"),
    "no pairs": (WHOLE[:30], "tensor count 11 cannot fit in the 14 bytes that are left"),
    "tensor count": (patched(8, "<Q", 2**63), "tensor count 9223372036854775808 cannot fit"),
    "pair count": (patched(16, "<Q", 10**6), "metadata pair count 1000000 cannot fit in the .* at byte 16"),
    "key length": (patched(KEY_AT, "<Q", 2**64 - 1), "key of metadata pair 0 needs 18446744073709551615 bytes"),
    "key bytes": (patched(KEY_AT + 8, "<B", 0xFF), "key of metadata pair 0 is not UTF-8 at byte 24"),
    "value type": (patched(KEY_AT + 8 + len("general.architecture"), "<I", 99), "unknown value type 99"),
    "array count": (gguf_bytes({"a": np.zeros(9, dtype="<u4")}, {}).replace(struct.pack("<IQ", 4, 9), struct.pack("<IQ", 4, 2**40)), "cannot fit"),
    "strings count": (LONG_STRING.replace(struct.pack("<IQ", 8, 1), struct.pack("<IQ", 8, 7)), "string . of 7 in value of 'a' runs past"),
    "string in array": (STRINGS.replace(struct.pack("<Q", 3) + b"xyz", struct.pack("<Q", 2**62) + b"xyz"), "runs past the end"),
    "not UTF-8 in array": (STRINGS.replace(b"xyz", b"x\xffz"), "string 0 in value of 'a' is not UTF-8"),
    "key twice": (gguf_bytes({"ab": 1, "ac": 2}, {}).replace(b"ac", b"ab"), "'ab' is there twice"),
    "tensor twice": (TWO.replace(struct.pack("<Q", 1) + b"b", struct.pack("<Q", 1) + b"a"), "tensor 'a' is there twice"),
    "overlap": (TWO[:B_OFFSET] + struct.pack("<Q", 0) + TWO[B_OFFSET + 8 :], "tensors 'a' and 'b' overlap"),
    "misaligned": (TWO[:B_OFFSET] + struct.pack("<Q", 33) + TWO[B_OFFSET + 8 :], "no multiple of the alignment 32"),
    "far offset": (TWO[:B_OFFSET] + struct.pack("<Q", 2**63) + TWO[B_OFFSET + 8 :], "but the file ends at"),
    "cut data": (WHOLE[:-1], "but the file ends at"),
    "no dims": (T1.replace(struct.pack("<IQ", 1, 1024), struct.pack("<IQ", 0, 1024)), "0 dimensions"),
    "many dims": (T1.replace(struct.pack("<IQ", 1, 1024), struct.pack("<IQ", 2**31, 1024)), "2147483648 dimensions"),
    "zero dim": (T1.replace(struct.pack("<IQ", 1, 1024), struct.pack("<IQ", 1, 0)), r"dimensions \[0\]"),
    "huge dims": (one_tensor((2**63, 2**63, 2**63, 2**63)), "but the file ends at"),
    "torn block": (one_tensor((2, 48), kind="Q4_0"), "multiple of 32 for Q4_0"),
    "alignment 0": (gguf_bytes({"general.alignment": 0}, {}), "power of two"),
    "alignment 48": (gguf_bytes({"general.alignment": 48}, {}), "power of two"),
    "alignment text": (gguf_bytes({"general.alignment": "x"}, {}), "power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(file: Path, case: str):
    raw, message = DAMAGED[case]
    file.write_bytes(raw)
    with pytest.raises(BadModelFile, match=message) as caught:
        read_gguf(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


UNSUPPORTED = {
    "version 1": (patched(4, "<I", 1), "GGUF version 1"),
    "big-endian": (patched(4, ">I", 3), "big-endian"),
    "type Q2_K": (T1.replace(struct.pack("<QI", 1024, 0), struct.pack("<QI", 1024, 10)), "type Q2_K"),
    "type IQ4_XS": (T1.replace(struct.pack("<QI", 1024, 0), struct.pack("<QI", 1024, 23)), "type IQ4_XS"),
    "type 99": (T1.replace(struct.pack("<QI", 1024, 0), struct.pack("<QI", 1024, 99)), "type 99"),
    "split": (gguf_bytes({"split.count": np.uint16(2)}, {}), "one part of a split model"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_is_named(file: Path, case: str):
    raw, message = UNSUPPORTED[case]
    file.write_bytes(raw)
    with pytest.raises(Unsupported, match=message):
        read_gguf(file)


def test_deep_arrays_are_refused(file: Path):
    nested: object = ["x"]
    for _ in range(MAX_DEPTH):
        nested = [nested]
    write(file, {"a": nested}, {})
    with pytest.raises(BadModelFile, match="nests arrays deeper"):
        read_gguf(file)


def test_no_file_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(BadModelFile, match="no such file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(BadModelFile, match="not a regular file"):
        read_gguf(tmp_path)


def test_truncation_is_refused_wherever_it_is(file: Path):
    header = len(WHOLE) - sum(t.data.nbytes for t in TINY[1].values())
    for end in [*range(0, header, 3), *range(header, len(WHOLE), 97)]:
        file.write_bytes(WHOLE[:end])
        with pytest.raises(BadModelFile):
            read_gguf(file)
