"""Writes the last two sections of docs/cache.md, from rows of benchmarks/looked_up.py and benchmarks/pairs.py in benchmarks/results.

`python scripts/gen_cache.py --check` writes nothing and fails when they are stale, when a policy or a plan has no row, or when a row says that
a law found something wrong. Strategies that came since a row was made are named, not refused.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ponder.catalogue import ATTENTION_PLANS, CACHES, STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
MARK = "\n## Looked-up keys\n"
LOOKED_UP = """
Written by `python scripts/gen_cache.py`, with the section below. Do not edit.

An attention plan for answers drops nothing: each token of an answer looks up which keys it meets (`ponder ask ... --attend quest:keep=1024`).
What a plan keeps for that (bounds of pages, centroids, the last full token's list) is a function of the tokens before, is shared by all
who have the prompt's pages, and may be lost at any time: answers are the same alone, in a crowd, forked, cached or preempted.

Needles: the model of benchmarks/recall_model.py, trained at {trained_len} tokens, four questions behind each prompt
(`python benchmarks/looked_up.py recall`); keys met of those before, by all of an answer's tokens. Squeezed's thresholds were found on other
sequences. With `recycled:every=2` each question is itself a token that meets everything: 1.0 says nothing there.

| plan | right, % [95 %] | keys met, % |
|---|---|---|
"""
TIMES = """
Time: CPU milliseconds of one thread a token, the median of rounds of eight tokens that take turns (`python benchmarks/looked_up.py decode`);
`recycled` meets everything once in each. What a plan keeps is made at the first token of an answer, once for a prompt.

| model, tokens before | plan | ms a token | times plain | keys met, % | kept beside the keys, MB (keys and values) | first token, s |
|---|---|---|---|---|---|---|
"""
PAIRS = """
## Together with others

From runs of laws on a random model (`python benchmarks/pairs.py`), bit for bit. *same*: the answers of the technique by itself, one by one in
processes of their own, are those of a drafter's trees beside it, of prompts that are asked about again, of prompts in pieces, of a crowd
short of memory. *refused*: not opened together. Strategies: how many gave the same answer in a roomy process and in a narrow one, where that
was run (`python benchmarks/pairs.py --strategies --known`: about 15 CPU seconds each; H2O is a test, tests/accelerate/test_cache_strategies.py).

| technique | speculation | prefix sharing | chunked prefill | batching, preemption | strategies |
|---|---|---|---|---|---|
"""
Row = Mapping[str, object]


def read(path: Path, key: str) -> dict[str, Row]:
    """The newest row of each."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    names = ("what", "model", "tokens", key)
    return {" ".join(str(row[name]) for name in names if name in row): row for row in rows if key in row}


def mistakes(pairs: Mapping[str, Row]) -> list[str]:
    """Techniques without a row, and cells that found something wrong."""
    wanted = [f"cache {name}" for name in CACHES] + [f"attend {name}" for name in ATTENTION_PLANS]
    found = [f"{name} has no row in results/pairs.jsonl; run benchmarks/pairs.py '{name}'" for name in wanted if name not in pairs]
    for name, row in pairs.items():
        found += [
            f"{name} with {cell}: {row[cell]}" for cell in ("speculation", "sharing", "chunks", "batching") if row[cell] not in ("same", "refused")
        ]
        if row["strategies"] != "not run" and not str(row["strategies"]).startswith("all "):
            found.append(f"{name} with strategies: {row['strategies']}")
    return found


def sections(looked_up: Mapping[str, Row], pairs: Mapping[str, Row]) -> str:
    needles = [row for row in looked_up.values() if row["what"] == "recall"]
    times = [row for row in looked_up.values() if row["what"] == "decode" and "first_token_s" in row]  # older rows timed other parts
    text = MARK + LOOKED_UP.format(**needles[0]) + "".join(f"| {row['plan']} | {percent(row)} | {share(row)} |\n" for row in needles)
    if times:
        text += TIMES + "".join(
            f"| {row['model']}, {row['tokens']:,} | {row['plan']} | {row['ms_per_token']} | {row['gain']} | {share(row)} | "
            f"{row['memory_mb']} ({row['kv_mb']:.0f}) | {row['first_token_s']} |\n"
            for row in times
        )
    cells = ("technique", "speculation", "sharing", "chunks", "batching", "strategies")
    return text + PAIRS + "".join("| " + " | ".join(str(row[cell]) for cell in cells) + " |\n" for _, row in sorted(pairs.items()))


def percent(row: Row) -> str:
    right, low, high = (100 * float(str(row[name])) for name in ("right", "low", "high"))
    return f"{right:.1f} [{low:.1f}, {high:.1f}]"


def share(row: Row) -> str:
    return f"{100 * float(str(row['keys_met'])):.1f}"


def main(args: Sequence[str]) -> int:
    results, page = ROOT / "benchmarks/results", ROOT / "docs/cache.md"
    pairs = read(results / "pairs.jsonl", "technique")
    wrong = mistakes(pairs)
    before = page.read_text(encoding="utf-8")
    text = before.partition(MARK)[0] + sections(read(results / "looked_up.jsonl", "plan"), pairs)
    if "--check" in args and not wrong and text != before:
        wrong = ["docs/cache.md is stale; run `make docs`"]
    elif "--check" not in args:
        page.write_text(text, encoding="utf-8")
    num_old = sum(not str(row["strategies"]).startswith(f"all {len(STRATEGIES)}") for row in pairs.values())
    print("\n".join(wrong) or f"docs/cache.md: {len(pairs)} techniques, {num_old} of them not run beside all of today's {len(STRATEGIES)} strategies")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
