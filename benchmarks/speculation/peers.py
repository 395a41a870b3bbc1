"""Peers that guess ahead without a draft model, in processes of their own: see benchmarks/peers/*_lookup.py."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peers.handle import Worker, WorkerFailed

SETTINGS = {
    "llama.cpp lookup": (
        "plain",
        "ngram_simple",  # as it comes: 12 tokens to match, 48 to draft
        "ngram_simple:3,10",
        "ngram_map_k:3,10",
    ),
    "transformers lookup": ("plain", "lookup:10"),
}
SECONDS = 120.0  # of one turn, at most


class Peers:
    """Workers, opened when first used. Whoever is missing or fails is named in a row, and the others go on."""

    def __init__(self, model: Path, python: str | None, threads: int, folder: Path) -> None:
        self.model, self.python, self.threads, self.folder = model, python, threads, folder
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}

    def turns(
        self, groups: Sequence[Sequence[Sequence[int]]], new: int, eos: Sequence[int], is_over: Callable[[], bool]
    ) -> Iterator[dict[str, object]]:
        """groups: prompts' ids that are answered at once, one group after the other. A row for each engine and setting."""
        if self.python is None:
            return
        for engine, variants in SETTINGS.items():
            for variant in variants:
                row: dict[str, object] = {"setting": f"{engine.partition(' ')[0]} {variant}"}
                if engine in self.failed or is_over():
                    yield row | {"missing": self.failed.get(engine, "out of time")}
                    continue
                try:
                    replies = [self._ask(engine, variant, group, new, eos) for group in groups]
                except WorkerFailed as error:
                    if engine not in self.workers or not self.workers[engine].is_alive:
                        self.failed[engine] = str(error)
                    yield row | {"missing": str(error)}
                else:
                    yield row | figures(replies)

    def _ask(self, engine: str, variant: str, group: Sequence[Sequence[int]], new: int, eos: Sequence[int]) -> dict:
        if engine not in self.workers:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.folder / f"speculation-{engine.replace(' ', '-')}.log"
            worker = Worker(engine, self.python, log, {"OMP_NUM_THREADS": str(self.threads)})
            worker.begin(SECONDS)
            worker.ask({"do": "load", "path": str(self.model), "threads": self.threads, "option": ""}, SECONDS)
            self.workers[engine] = worker
        work = {"kind": "prompts", "prompts": [{"ids": list(ids)} for ids in group], "new": [new] * len(group), "variant": variant, "eos": list(eos)}
        return self.workers[engine].ask({"do": "run", "work": work}, SECONDS)

    def close(self) -> None:
        for worker in self.workers.values():
            if worker.is_alive:
                worker.quit()


def figures(replies: Sequence[dict]) -> dict[str, object]:
    """Tokens a second after every sequence's first: as ours are counted. An answer of one token has no speed."""
    num, seconds, load = 0, 0.0, os.getloadavg()[0]
    for reply in replies:
        begun = [(count, times) for count, times in zip(reply["counts"], reply["times"], strict=True) if times]
        first = max(times[0] for _, times in begun)
        before = sum(sum(t <= first for t in times) for _, times in begun)
        end = max(times[-1] for _, times in begun)
        if end > first:
            num += sum(count for count, _ in begun) - before
            seconds += end - first
    return {
        "tokens_per_s": float(f"{num / seconds:.4g}") if seconds else None,
        "tokens": sum(sum(r["counts"]) for r in replies),
        "load": round(load, 2),
    }
