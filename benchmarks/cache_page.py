"""Writes docs/cache.md and docs/cache.svg from results/cache.jsonl and results/cache_quality.jsonl: `python benchmarks/cache_page.py`."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from lib.pruned_section import section

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
COLOURS = {
    "snapkv": "#4269d0", "pyramidkv": "#6cc5b0", "adakv": "#1b7f5c", "h2o": "#d97706", "d2o": "#a3541a", "elastic": "#efb118", "tova": "#9b59b6",
    "streaming": "#888888", "knorm": "#ff725c",
}  # fmt: skip
HEAD = """# Cache policies

Written by `python benchmarks/cache_page.py` from rows in benchmarks/results. Do not edit.

A policy decides with which keys of a long prompt an answer goes on: `ponder ask ... --cache snapkv:0.25`, `ponder.load(..., cache="h2o:512")`.
The number is a share of the prompt's keys that a head keeps, or a number of keys. What each policy is, and what it needs to see: CATALOGUE.md.
The prompt itself is read whole, so a policy saves memory and time of the answer, not of the prompt. Answers are the same alone and in a crowd.
"""
READING = """
## How to read it

- The first question stands in the prompt, where a policy that looks at the last tokens sees it. The second comes afterwards: nobody could
  keep what it needs, and what it finds is what a policy keeps without being asked. That gap is the price of policies that look at a question.
- Small models, short files, numbers to be found: a trend, not a ranking. Intervals overlap wherever they look as if they might.
- Policies drop keys once here, when the prompt has been read.
- Not there: SpecKV (its figures would need the draft), trained policies (Locret, KV prediction, SwiftKV).
"""


def read(name: str) -> list[dict]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(rows: list[dict], *keys: str) -> list[dict]:
    """The last row of each combination of `keys`, in the order in which they first came."""
    found: dict[tuple, dict] = {}
    for row in rows:
        found[tuple(row[key] for key in keys)] = row
    return list(found.values())


def draw(rows: list[dict], path: Path) -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "cache", "svg.fonttype": "path"})
    figure, grid = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    plain = next(row for row in rows if row["policy"] == "none")
    for axes, which in zip(grid, ("first", "second")):
        for name, colour in COLOURS.items():
            mine = sorted((row["share"], row[which]) for row in rows if row["policy"] == name)
            axes.plot([100 * share for share, _ in mine], [100 * y for _, y in mine], "o-", color=colour, label=name, markersize=4)
        axes.axhline(100 * plain[which], color="black", linestyle=":", label="all keys")
        axes.set(xscale="log", xlabel="keys kept, % of the prompt's", title=f"{which} question", ylim=(-4, 104))
        axes.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    grid[0].set_ylabel("% right")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def quality(rows: list[dict]) -> list[str]:
    one = rows[0]
    lines = [LOST.format(**one)]
    for row in rows:
        cells = [f"{100 * row[w]:.0f} [{100 * row[f'{w}_interval'][0]:.0f}, {100 * row[f'{w}_interval'][1]:.0f}]" for w in ("first", "second")]
        lines.append(f"| {row['policy']} | {100 * row['share']:.0f} % | {cells[0]} | {cells[1]} |")
    return lines


LOST = """## What is lost

{n} files of {functions} functions, {tokens} tokens each, {model}; % right of a question in the prompt and of a second one asked afterwards, with
Wilson's 95 % interval (`python benchmarks/cache_quality.py`).

![quality against keys kept](cache.svg)

| policy | keys kept | first question | second question |
|---|---|---|---|"""
COST = """
## What it costs

CPU seconds of one thread (`python benchmarks/cache.py`), a prompt read under each policy.

| policy | model, tokens | reading, s | attention, s | seeing, s | dropping, s | both, % of the rest | seeing, % of attention |
|---|---|---|---|---|---|---|---|"""
SAVED = """
## What it saves

A token of the answer, with all keys and with a tenth of them; the roofline counts bytes of weights and keys.

| policy | model, tokens | ms a token | gain | roofline gain | keys and values, MB | over nominal |
|---|---|---|---|---|---|---|"""


def costs(rows: list[dict]) -> list[str]:
    lines = [COST]
    for row in newest([row for row in rows if row["what"] == "evidence"], "policy", "model"):
        lines.append(
            f"| {row['policy']} | {row['model']}, {row['tokens']} | {row['prefill_seconds']:.1f} | {row['attention_seconds']:.2f} | "
            f"{row['evidence_seconds']:.2f} | {row['dropping_seconds']:.2f} | {100 * row['of_prefill']:.1f} | {100 * row['of_attention']:.0f} |"
        )
    lines.append(SAVED)
    for row in newest([row for row in rows if row["what"] == "decode"], "policy", "model"):
        lines.append(
            f"| {row['policy']} | {row['model']}, {row['tokens']} | {1000 * row['seconds_per_token']:.1f} | {row['gain']:.2f} x | "
            f"{row['roofline_gain']:.2f} x | {row['page_bytes'] / 1e6:.1f} | {100 * row['bytes_over_nominal']:+.1f} % |"
        )
    return lines


def main() -> None:
    rows = newest(read("cache_quality"), "policy", "share")
    draw(rows, ROOT / "docs/cache.svg")
    text = HEAD + "\n" + "\n".join(quality(rows) + costs(read("cache"))) + "\n" + READING + section(read("pruned"))
    page = ROOT / "docs/cache.md"
    _, mark, rest = page.read_text(encoding="utf-8").partition("\n## Looked-up keys\n")  # these sections are scripts/gen_cache.py's
    page.write_text(text + mark + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
