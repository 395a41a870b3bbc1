"""llama.cpp as a worker, through the server inside xllamacpp: continuous batching, prompts as ids, tokens as a stream.

Every work gets the server that suits it (its own number of slots and context), made before the clock starts. Samples of one prompt
are its own `n`: the prompt is computed once and its cells are shared. A reply is only text, so counts come from `usage`.
"""

import threading
import time
from pathlib import Path

import xllamacpp

from peers.serve import Made

BLOCK = 256  # cells to which llama.cpp rounds a context


class Peer:
    def load(self, path: Path, threads: int, option: str) -> str:
        self.path, self.threads, self.shape = path, threads, None
        self._open((1, 512, False))
        return "the file's own blocks, server slots, flash attention auto"

    def versions(self) -> dict[str, str]:
        return {"xllamacpp": xllamacpp.__version__}

    def _open(self, shape: tuple[int, int, bool]) -> None:
        """shape: (slots, cells in all, whether slots share one store)."""
        if shape == self.shape:
            return
        self.server = None
        params = xllamacpp.CommonParams()
        params.model.path, params.verbosity, params.cache_ram_mib = str(self.path), 0, 0
        params.n_parallel, params.n_ctx, params.kv_unified = shape
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        self.server, self.shape = xllamacpp.Server(params), shape

    def ready(self, work: dict) -> None:
        longest = max(len(p["ids"]) for p in work["prompts"]) + max(work["new"])
        if work["kind"] == "samples":
            self._open((work["num"], _blocks(len(work["prompts"][0]["ids"]) + sum(work["new"]) + 8 * work["num"]), True))
        else:
            self._open((len(work["prompts"]), len(work["prompts"]) * _blocks(longest + 1), False))

    def run(self, work: dict) -> Made:
        num = work["num"] if work["kind"] == "samples" else len(work["prompts"])
        self.texts, self.counts, self.times = [""] * num, [0] * num, [[] for _ in range(num)]
        self.errors: list[str] = []
        self.start = time.perf_counter()
        if work["kind"] == "arrivals":
            self._arrive(work)
        else:
            ids = [p["ids"] for p in work["prompts"]]
            drawn = {"n": num, "temperature": 1.0, "samplers": ["temperature"], "seed": work["seed"]} if work["kind"] == "samples" else {}
            self._ask({"prompt": ids if len(ids) > 1 else ids[0], "n_predict": work["new"][0], **drawn}, 0)
        seconds = time.perf_counter() - self.start
        if self.errors:
            raise RuntimeError(self.errors[0])
        return Made(seconds, self.counts, self.times, texts=self.texts)

    def _arrive(self, work: dict) -> None:
        threads = []
        for index, (prompt, num, at) in enumerate(zip(work["prompts"], work["new"], work["at"], strict=True)):
            time.sleep(max(0.0, at - (time.perf_counter() - self.start)))
            threads.append(threading.Thread(target=self._ask, args=({"prompt": prompt["ids"], "n_predict": num}, index)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _ask(self, request: dict, first: int) -> None:
        """Streams one request; its choice i is sequence first + i."""
        greedy = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"]}
        self.server.handle_completions(
            {**greedy, "ignore_eos": True, "cache_prompt": False, "stream": True, **request}, lambda event: self._take(event, first)
        )

    def _take(self, event: object, first: int) -> bool:
        if isinstance(event, dict):
            now = time.perf_counter() - self.start
            if "error" in event or "choices" not in event:
                self.errors.append(str(event)[:300])
            for choice in event.get("choices", ()):
                index = first + choice["index"]
                if choice["finish_reason"] is None:
                    self.texts[index] += choice["text"]
                    self.times[index].append(now)
                else:
                    self.texts[index] += choice["text"]
                    self.counts[index] = event["usage"]["completion_tokens"]
        return False


def _blocks(num: int) -> int:
    return -(-num // BLOCK) * BLOCK
