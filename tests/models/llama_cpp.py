"""llama.cpp as an oracle: its server on a small GGUF file, asked for ids and for log-probabilities."""

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from models.gguf_writer import Stored, write
from ponder.models.gguf import read_gguf


@dataclass(frozen=True)
class Server:
    """A running server; `ask` is one HTTP request to it."""

    address: str

    def ask(self, verb: str, **body: object) -> dict:
        request = urllib.request.Request(f"{self.address}/{verb}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return self.ask("tokenize", content=text, add_special=False, parse_special=parse_special)["tokens"]

    def log_p(self, ids: Sequence[int], num: int) -> dict[int, float]:
        """id -> log-probability of the `num` likeliest tokens after `ids`."""
        reply = self.ask("completion", prompt=list(ids), n_predict=1, n_probs=num, temperature=0.0, cache_prompt=False)
        return {row["id"]: row["logprob"] for row in reply["completion_probabilities"][0]["top_logprobs"]}


@contextmanager
def serve(path: Path, context_len: int = 128) -> Iterator[Server]:
    """A server on the GGUF file at `path`, one thread, float32 keys and values; skips the test where llama.cpp is not there."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is the reference")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = str(path), context_len, 1, False, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    try:
        yield Server(server.listening_address)
    finally:
        del server


def rewritten(source: Path, target: Path, metadata: Mapping[str, object], tensors: Mapping[str, Stored] | None = None) -> Path:
    """The GGUF file `source` with more metadata and other tensors. Floats become float32, which is what llama.cpp reads."""
    gguf = read_gguf(source)
    values = {key: np.float32(value) if isinstance(value, float) else value for key, value in (gguf.metadata | dict(metadata)).items()}
    stored = {name: Stored(info.kind.name, info.shape, gguf.blocks(name)) for name, info in gguf.tensors.items()}
    return write(target, values, stored | dict(tensors or {}))
