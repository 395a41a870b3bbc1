"""Works become orders to workers: prompts, lengths, arrival times, and a short order of the same kind to warm up with."""

from pathlib import Path

from peers.prompts import exact_prompt, mixed_lengths, poisson
from peers.works import Work
from ponder.models.tokenizer import open_tokenizer

WARM_LEN, WARM_NEW = 32, 2


class OrderBook:
    """Every round has prompts of its own, so that no cache has seen them; arrivals keep their times and lengths."""

    def __init__(self, path: Path, *, is_tiny: bool = False) -> None:
        self.tokenizer = open_tokenizer(path)
        self.rate: float | None = None  # requests a second
        self.is_tiny = is_tiny

    def order(self, work: Work, number: int, variant: str) -> dict[str, object]:
        num_prompts = 1 if work.kind == "samples" else work.num
        lens, new = [work.prompt_len] * num_prompts, [work.num_new] * work.num
        if work.kind == "arrivals":
            lens, new = mixed_lengths(work.num, work.num, work.prompt_len, work.num_new)
        base = 1 if work.is_ours else 1000 * (number + 1) + len(work.name)
        made = {
            "kind": work.kind, "num": work.num, "new": list(new), "seed": number, "variant": variant, "is_stored": work.is_ours,
            "prompts": [exact_prompt(self.tokenizer, base + i, n) for i, n in enumerate(lens)],
        }  # fmt: skip
        if work.kind == "arrivals":
            made["at"] = poisson(work.num, work.num, self.rate or 1.0)
        return {"do": "run", "work": made, "warm": self._warm(work, made)}

    def _warm(self, work: Work, made: dict) -> dict[str, object]:
        if work.is_ours:  # its prefix must be in the store
            return {**made, "num": 1, "new": [1]}
        num = min(WARM_LEN, work.prompt_len)
        num_prompts = len(made["prompts"])
        prompts = [exact_prompt(self.tokenizer, 500 + i, num) for i in range(num_prompts)]
        at = {"at": [0.0] * num_prompts} if "at" in made else {}
        return {**made, "new": [min(WARM_NEW, n) for n in made["new"]], "prompts": prompts, **at}
