"""The embedding: rows equal to those of the decoded matrix, in no more bytes than the file or the type needs."""

import numpy as np
import pytest
import torch

from ponder.models.checkpoint import StoredTensor
from ponder.models.dequantize import KINDS, dequantize
from ponder.models.embedding import DenseEmbedding, StoredEmbedding, load_embedding

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


def test_blocks_of_another_kind_would_be_seen():
    raw, stored = raw_tensor("Q4_1")
    wrong = StoredEmbedding(torch.from_numpy(stored.reshape(ROWS, -1)[:, : COLUMNS // 32 * 18].copy()), KINDS["Q4_0"])
    assert not torch.equal(wrong.rows(TOKENS), load_embedding(raw, torch.bfloat16).rows(TOKENS))
