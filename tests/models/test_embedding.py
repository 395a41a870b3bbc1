"""The embedding: rows equal to those of the decoded matrix, in no more bytes than the file or the type needs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ponder.core.errors import BadModelFile
from ponder.core.formats import Embedding
from ponder.models.checkpoint import StoredTensor
from ponder.models.dequantize import KINDS, dequantize
from ponder.models.embedding import MAX_HELD, DenseEmbedding, FileEmbedding, StoredEmbedding, load_embedding, open_embedding
from ponder.models.files import ModelFile

ROWS, COLUMNS = 5000, 512  # more than one step
TOKENS = torch.tensor([4999, 0, 7, 7, 2048, 4998])


def raw_tensor(name: str) -> tuple[StoredTensor, np.ndarray]:
    kind = KINDS[name]
    if name in ("F32", "F16", "BF16"):
        values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
        stored = values.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]).view(torch.uint8).numpy()
    else:
        stored = np.random.default_rng(0).integers(0, 120, (ROWS, kind.row_nbytes(COLUMNS)), dtype=np.uint8)
    return StoredTensor("embed", (ROWS, COLUMNS), kind, lambda start, stop: stored[start:stop].copy()), stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_those_of_the_matrix(name: str, dtype: torch.dtype):
    raw, stored = raw_tensor(name)
    embedding = load_embedding(raw, dtype)
    wanted = torch.from_numpy(dequantize(raw.storage, stored))[TOKENS]
    is_smaller = stored.nbytes < ROWS * COLUMNS * dtype.itemsize
    assert isinstance(embedding, StoredEmbedding if is_smaller else DenseEmbedding)
    found = embedding.rows(TOKENS)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted if is_smaller else wanted.to(dtype).float())
    assert embedding.nbytes == min(stored.nbytes, ROWS * COLUMNS * dtype.itemsize)
    found.zero_()
    assert torch.equal(embedding.rows(TOKENS[:1])[0], wanted[0] if is_smaller else wanted[0].to(dtype).float()), "rows are not the caller's own"
    with pytest.raises(IndexError):
        embedding.rows(torch.tensor([ROWS]))


def differing(embedding: Embedding, wanted: Embedding) -> int:
    found = embedding.rows(TOKENS)
    assert found.shape == (len(TOKENS), COLUMNS) and found.dtype == torch.float32
    return int((found.view(torch.int32) != wanted.rows(TOKENS).view(torch.int32)).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_a_large_embedding_stays_in_the_file_and_its_rows_are_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    raw, _ = raw_tensor(name)
    assert isinstance(open_embedding(raw, dtype), FileEmbedding) == (load_embedding(raw, dtype).nbytes > MAX_HELD)
    monkeypatch.setattr("ponder.models.embedding.MAX_HELD", 0)
    embedding = open_embedding(raw, dtype)
    assert isinstance(embedding, FileEmbedding) and embedding.nbytes == 0
    assert differing(embedding, load_embedding(raw, dtype)) == 0
    other = replace(raw, read=lambda start, stop: raw.read(max(start, 1) - 1, max(stop, 2) - 1))
    assert differing(FileEmbedding(other, embedding.dtype), load_embedding(raw, dtype)) > 0, "the rows before would not be seen"
    assert embedding.rows(torch.tensor([], dtype=torch.int64)).shape == (0, COLUMNS)
    for token in (-1, ROWS):
        with pytest.raises(IndexError, match=str(token)):
            embedding.rows(torch.tensor([3, token]))


def test_a_file_that_changed_is_an_error(tmp_path: Path):
    path = tmp_path / "rows"
    path.write_bytes(bytes(100 * 4))
    file = ModelFile(path)
    raw = StoredTensor("embed", (100, 1), KINDS["F32"], lambda start, stop: file.read(start * 4, (stop - start) * 4).reshape(-1, 4))
    embedding = FileEmbedding(raw, None)
    assert embedding.rows(torch.tensor([99])).tolist() == [[0.0]]
    path.write_bytes(bytes(50 * 4))
    with pytest.raises(BadModelFile, match="since it was opened"):
        embedding.rows(torch.tensor([3]))


def test_blocks_of_another_kind_would_be_seen():
    raw, stored = raw_tensor("Q4_1")
    wrong = StoredEmbedding(torch.from_numpy(stored.reshape(ROWS, -1)[:, : COLUMNS // 32 * 18].copy()), KINDS["Q4_0"])
    assert not torch.equal(wrong.rows(TOKENS), load_embedding(raw, torch.bfloat16).rows(TOKENS))
