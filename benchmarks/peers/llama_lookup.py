"""llama.cpp as a worker that guesses ahead from the context, without a draft model: its own n-gram speculation, or none.

option, or a work's variant: "plain", or "TYPE" or "TYPE:n,m" with a type of its own (ngram_simple, ngram_map_k, ngram_map_k4v,
ngram_mod), n tokens to match and m to draft where that type has such settings. Answers end where the model ends them.
"""

import time

import xllamacpp

from peers import llama_cpp
from peers.serve import Made

TYPES = xllamacpp.common_speculative_type


class Peer(llama_cpp.Peer):
    def _open(self, shape: tuple) -> None:
        """shape: as of llama_cpp, and the variant behind it."""
        shape = (*shape[:3], shape[3] if len(shape) > 3 else "plain")
        if shape == self.shape:
            return
        self.server = None
        params = xllamacpp.CommonParams()
        params.model.path, params.verbosity, params.cache_ram_mib = str(self.path), 0, 0
        params.n_parallel, params.n_ctx, params.kv_unified = shape[:3]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        kind, _, sizes = shape[3].partition(":")
        if kind != "plain":
            params.speculative.types = [getattr(TYPES, f"COMMON_SPECULATIVE_TYPE_{kind.upper()}")]
            if sizes:
                settings = getattr(params.speculative, kind)
                settings.size_n, settings.size_m = map(int, sizes.split(","))
        self.server, self.shape = xllamacpp.Server(params), shape

    def ready(self, work: dict) -> None:
        longest = max(len(p["ids"]) for p in work["prompts"]) + max(work["new"])
        num = len(work["prompts"])
        self._open((num, num * llama_cpp._blocks(longest + 64), False, work["variant"]))

    def run(self, work: dict) -> Made:
        num = len(work["prompts"])
        self.texts, self.counts, self.times, self.errors = [""] * num, [0] * num, [[] for _ in range(num)], []
        self.start = time.perf_counter()
        ids = [p["ids"] for p in work["prompts"]]
        self._ask({"prompt": ids if num > 1 else ids[0], "n_predict": work["new"][0], "ignore_eos": False}, 0)
        seconds = time.perf_counter() - self.start
        if self.errors:
            raise RuntimeError(self.errors[0])
        return Made(seconds, self.counts, self.times, texts=self.texts)
