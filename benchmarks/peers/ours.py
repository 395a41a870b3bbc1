"""Our engine as a worker. A thin shell around catalogue.open_model and the process's add and step."""

import dataclasses
import time
from pathlib import Path

import torch

import ponder
from peers.serve import Made
from ponder import catalogue
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt, Sampling

LIMIT = 1 << 20


class Peer:
    def load(self, path: Path, threads: int, option: str) -> str:
        weights = option or "int4"
        self.process = catalogue.open_model(path, weights, threads)
        self.process.tokenizer = dataclasses.replace(self.process.tokenizer, eos_ids=frozenset())  # no token ends an answer
        self.default = getattr(self.process, "scheduler", None)
        return f"weights {weights}"

    def versions(self) -> dict[str, str]:
        return {"ponder": ponder.__version__, "torch": torch.__version__}

    def ready(self, work: dict) -> None:
        for prompt in work["prompts"]:
            if self.process.tokenizer.render((("raw", prompt["text"]),)) != prompt["ids"]:
                raise ValueError(f"prompt {prompt['text'][:40]!r} has other ids here than those given to the peers")
            self.process.prompt_len(self._prompt(prompt))  # ids are given to the peers: make ours beforehand, too
        if not work["is_stored"]:
            self.process.drop_cache()
        variant = work.get("variant", "")
        if hasattr(self.process, "scheduler"):
            self.process.scheduler = catalogue.SCHEDULERS.get(variant, self.default)
        if hasattr(self.process, "attention"):
            self.process.attention.is_shared = variant != "unshared"

    def _prompt(self, prompt: dict) -> Prompt:
        return Prompt(messages=(("raw", prompt["text"]),), max_tokens=LIMIT)

    def run(self, work: dict) -> Made:
        sampling = Sampling() if work["kind"] == "samples" else GREEDY
        prompts = [self._prompt(p) for p in work["prompts"]]
        if work["kind"] == "samples":
            prompts *= work["num"]
        asks = [
            Extend(prefix=Prefix(prompt), seed=work["seed"] + i, max_tokens=num, sampling=sampling)
            for i, (prompt, num) in enumerate(zip(prompts, work["new"], strict=True))
        ]
        return self._answer(asks, work.get("at") or [0.0] * len(asks))

    def _answer(self, asks: list[Extend], at: list[float]) -> Made:
        times: list[list[float]] = [[] for _ in asks]
        prefixes: dict[int, Prefix] = {}
        tickets: dict[int, int] = {}
        num_added, start = 0, time.perf_counter()
        while len(prefixes) < len(asks):
            while num_added < len(asks) and at[num_added] <= time.perf_counter() - start:
                tickets[self.process.add(asks[num_added])] = num_added
                num_added += 1
            if not tickets:
                time.sleep(max(0.0, at[num_added] - (time.perf_counter() - start)))
                continue
            done = self.process.step()
            now = time.perf_counter() - start
            for ticket, progress in self.process.progress().items():
                row = times[tickets[ticket]]
                row += [now] * (progress.generated_tokens - len(row))
            for ticket, extension in done:
                index = tickets.pop(ticket)
                times[index] += [now] * (len(extension.prefix.tokens) - len(times[index]))
                prefixes[index] = extension.prefix
        seconds = time.perf_counter() - start
        found = [prefixes[i] for i in range(len(asks))]
        return Made(seconds, [len(p.tokens) for p in found], times, [list(p.tokens) for p in found], [p.text for p in found])
