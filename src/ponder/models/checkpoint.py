"""Opens a model: a GGUF file, or a Hugging Face folder with config.json and *.safetensors.

Nothing is read until a tensor is asked for. Everything the decoder needs is checked to be there, in the right shape,
before `open_checkpoint` returns; a tensor that nothing would read is refused, because it would change the result.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from ponder.core.errors import BadModelFile, UnknownName, Unsupported
from ponder.core.formats import ModelConfig
from ponder.models.config import gguf_config, hf_config
from ponder.models.dequantize import KINDS, Kind, dequantize
from ponder.models.families import FAMILIES
from ponder.models.files import ModelFile
from ponder.models.gguf import Gguf, read_gguf
from ponder.models.names import HF_NAMES as HF_NAMES
from ponder.models.names import Place, expected_shapes, gguf_places, hf_places

IDENTITY_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
MAX_JSON_NBYTES = 1 << 26
ROPE_TABLES = ("rope_freqs", "rope_factors_short", "rope_factors_long")
MAX_FACTORS = 1 << 16  # of rope; more is an error that gguf_config reports


@dataclass(frozen=True)
class StoredTensor:
    """A RawTensor that is read from the file when it is asked for. A vector has one number per row.

    read: start, stop -> those stored rows, uint8 [rows, bytes per row], owned.
    order: stored row of each row that the decoder sees, or None where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    storage: Kind
    read: Callable[[int, int], np.ndarray]
    order: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return self.storage.name

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start:stop as float32 [rows, columns], or [rows] of a vector. Owns its memory."""
        return torch.from_numpy(dequantize(self.storage, self.blocks(start, stop))).reshape(-1, *self.shape[1:])

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop as uint8 [rows, bytes per row], owned. Raises BadModelFile when the file changed since it was opened."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.order is None or start >= stop:
            return self.read(start, stop)
        wanted = self.order[start:stop]
        first = int(wanted.min())
        return self.read(first, int(wanted.max()) + 1)[wanted - first]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file before it is read; `read` (start, stop) gives raw rows of it, uint8 [rows, bytes per row]."""

    shape: tuple[int, ...]
    storage: Kind
    read: Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class FileCheckpoint:
    """A Checkpoint over files. entries: by our tensor names; sources: whose bytes make the model_id."""

    config: ModelConfig
    entries: Mapping[str, Entry]
    sources: tuple[ModelFile, ...]
    are_pairs_interleaved: bool  # rows of q and k as llama GGUF files store them

    @cached_property
    def model_id(self) -> str:
        """SHA-256 (hex) of the file, or for a folder of the names and SHA-256 of its files. 0.06 s per 100 MB, once."""
        if len(self.sources) == 1:
            return self.sources[0].sha256()
        lines = "".join(f"{source.path.name} {source.sha256()}\n" for source in self.sources)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(source.path for source in self.sources)

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name (see core.formats.Checkpoint). Raises UnknownName."""
        entry = self.entries.get(name)
        if entry is None:
            raise UnknownName("tensor", name, self.entries)
        return StoredTensor(name, entry.shape, entry.storage, entry.read, self._order(name))

    def _order(self, name: str) -> np.ndarray | None:
        config, part = self.config, name.removesuffix(".bias").rpartition(".")[2]
        if part not in ("q", "k") or not (self.are_pairs_interleaved or config.rotary_dim):
            return None
        heads = config.num_heads if part == "q" else config.num_kv_heads
        return halves_order(heads, config.head_dim, config.rotary_dim, is_interleaved=self.are_pairs_interleaved)


def halves_order(num_heads: int, head_dim: int, rotary_dim: int | None = None, *, is_interleaved: bool = True) -> np.ndarray:
    """int64 [num_heads * head_dim]: stored row of each row, so that the decoder finds rotary pairs in the halves of a head.

    Interleaved pairs (x0 y0 x1 y1 ..) become halves (x0 x1 .. y0 y1 ..). Where only the first rotary_dim rows of a head
    rotate, the rest is shared out to both halves, whose ends then do not rotate: products of q and k do not see the order.
    """
    half = (rotary_dim or head_dim) // 2
    x = np.arange(half) * 2 if is_interleaved else np.arange(half)
    y = x + 1 if is_interleaved else x + half
    left, right = np.split(np.arange(2 * half, head_dim), 2)
    head = np.concatenate([x, left, y, right])
    return (np.arange(num_heads)[:, None] * head_dim + head).reshape(-1)


def open_checkpoint(path: Path) -> FileCheckpoint:
    """The model at `path`: a GGUF file or a Hugging Face folder. Raises BadModelFile, Unsupported."""
    if path.is_dir():
        return _open_folder(path)
    return gguf_checkpoint(read_gguf(path))


def gguf_checkpoint(gguf: Gguf) -> FileCheckpoint:
    """The model in an already read GGUF file. Raises BadModelFile, Unsupported."""
    entries = {name: Entry(info.shape, info.kind, _rows_at(gguf.file, info.offset, info.row_nbytes)) for name, info in gguf.tensors.items()}
    tables = {name: _numbers(entries.pop(f"{name}.weight")) for name in ROPE_TABLES if f"{name}.weight" in entries}
    source = str(gguf.path)
    config = gguf_config(source, gguf.metadata, {name: e.shape for name, e in entries.items()}, tables)
    used = {name: entry for name, entry in entries.items() if not name.endswith(".attn_rot_embd.weight")}  # a table in old files; rope is computed
    _check_size(source, config, used)
    selected = _select(source, config, used, gguf_places(config))
    return FileCheckpoint(config, selected, (gguf.file,), FAMILIES[config.arch].is_interleaved)


def _open_folder(folder: Path) -> FileCheckpoint:
    values = read_json(folder / "config.json")
    shards = [ModelFile(path) for path in _shards(folder)]
    entries = _read_shards(shards)
    config = hf_config(str(folder / "config.json"), values, frozenset(entries))
    unread = ("rotary_emb.inv_freq", "lm_head.weight") if config.is_head_tied else ("rotary_emb.inv_freq",)
    used = {name: entry for name, entry in entries.items() if not name.endswith(unread)}
    sources = [ModelFile(path) for name in IDENTITY_FILES if (path := folder / name).exists()] + shards
    _check_size(str(folder), config, used)
    selected = _select(str(folder), config, used, hf_places(config))
    if FAMILIES[config.arch].is_norm_offset:
        selected = {name: _plus_one(entry) if name.endswith("norm") else entry for name, entry in selected.items()}
    return FileCheckpoint(config, selected, tuple(sources), False)


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in the file at `path`. Raises BadModelFile."""
    try:
        if path.stat().st_size > MAX_JSON_NBYTES:
            raise BadModelFile(f"{path}: larger than {MAX_JSON_NBYTES} bytes; not a config or index")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadModelFile(f"{path}: must hold a JSON object")
    return values


def _check_size(source: str, config: ModelConfig, entries: Mapping[str, Entry]) -> None:
    """Bounds the work of `_select` by what the file really holds."""
    if config.num_layers > len(entries):
        raise BadModelFile(f"{source}: {config.num_layers} layers, but only {len(entries)} tensors")


def _select(source: str, config: ModelConfig, entries: Mapping[str, Entry], places: Mapping[str, Place]) -> dict[str, Entry]:
    """Entries under our names, each checked to be all that there are."""
    selected, used, shapes = {}, set(), expected_shapes(config)
    for name, place in places.items():
        entry, shape = entries.get(place.stored), shapes[name]
        if entry is None:
            raise BadModelFile(f"{source}: tensor {place.stored!r} is missing")
        if entry.shape not in (place.shape, *([(1, *shape)] if len(shape) == 1 else [])):
            raise BadModelFile(f"{source}: tensor {place.stored!r} has shape {entry.shape}; the model's settings ask for {place.shape}")
        if len(shape) == 1 and entry.storage.values != 1:
            raise Unsupported(f"{source}: vector {place.stored!r} is stored as {entry.storage.name}; F32, F16 and BF16 are supported")
        if len(shape) == 1:
            entry = Entry(shape, entry.storage, partial(_vector_rows, entry))
        elif not place.is_whole:
            entry = Entry(shape, entry.storage, partial(_part_rows, entry, place.start))
        selected[name] = entry
        used.add(place.stored)
    left = entries.keys() - used
    if left:
        raise Unsupported(f"{source}: tensor {min(left)!r} ({len(left)} such) belongs to no part of a {config.arch} model")
    return selected


def _vector_rows(entry: Entry, start: int, stop: int) -> np.ndarray:
    return entry.read(0, 1).reshape(-1, entry.storage.nbytes)[start:stop]


def _part_rows(entry: Entry, first: int, start: int, stop: int) -> np.ndarray:
    return entry.read(first + start, first + stop)


def _plus_one(entry: Entry) -> Entry:
    """A vector plus 1, in float32."""

    def rows(start: int, stop: int) -> np.ndarray:
        return (dequantize(entry.storage, entry.read(start, stop)) + np.float32(1)).view(np.uint8)

    return Entry(entry.shape, KINDS["F32"], rows)


def _numbers(entry: Entry) -> tuple[float, ...]:
    return tuple(dequantize(entry.storage, entry.read(0, 1)).ravel()[:MAX_FACTORS].tolist())


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that the index names, or all."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise BadModelFile(f"{folder}: no *.safetensors file in this folder")
        return found
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and all(isinstance(n, str) for n in weight_map.values()) else set()
    bad = sorted(n for n in names if Path(n).name != n or not n.endswith(".safetensors"))
    if not names or bad:
        raise BadModelFile(f"{index}: weight_map must map tensor names to *.safetensors files of this folder{f', not {bad[0]!r}' if bad else ''}")
    return [folder / name for name in sorted(names)]


def _read_shards(shards: list[ModelFile]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for shard in shards:
        path = shard.path
        try:
            file = safetensors.safe_open(path, framework="pt")
            found = {name: (tuple(view.get_shape()), view.get_dtype()) for name in file.keys() if (view := file.get_slice(name)) is not None}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise BadModelFile(f"{path}: cannot be read: {error}") from error
        starts = _tensor_starts(shard)
        for name, (shape, dtype) in found.items():
            if name in entries:
                raise BadModelFile(f"{path}: tensor {name!r} is in another shard too")
            if dtype not in ("F32", "F16", "BF16"):
                raise Unsupported(f"{path}: tensor {name!r} is stored as {dtype}; F32, F16 and BF16 are supported")
            entries[name] = Entry(shape, KINDS[dtype], _rows_at(shard, starts[name], KINDS[dtype].row_nbytes((shape or (1,))[-1])))
    return entries


def _tensor_starts(shard: ModelFile) -> dict[str, int]:
    """First byte of each tensor. The library, which has checked the header just before, does not say: u64 length, then JSON."""
    length = int.from_bytes(shard.read(0, min(8, shard.size)), "little")
    try:
        header = json.loads(shard.read(8, min(length, shard.size)).tobytes())
        return {name: 8 + length + int(info["data_offsets"][0]) for name, info in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModelFile(f"{shard.path}: its header cannot be read: {error}") from error


def _rows_at(file: ModelFile, at: int, nbytes: int) -> Callable[[int, int], np.ndarray]:
    """`read` of an Entry whose rows of `nbytes` each begin at byte `at`."""
    return lambda start, stop: file.read(at + start * nbytes, (stop - start) * nbytes).reshape(-1, nbytes)
