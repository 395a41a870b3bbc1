"""Writes docs/cache.md and its pictures from rows in benchmarks/results: `python benchmarks/cache_page.py`. What has no rows yet is left out."""

import json
from collections.abc import Sequence
from pathlib import Path

from lib import cache_charts, long_rows
from lib.long_rows import Cell
from lib.predictor_section import section as predictor_section
from lib.pruned_section import section
from lib.tail_section import section as tail_section

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
HEAD = """# Cache policies

Written by `python benchmarks/cache_page.py` from rows in benchmarks/results. Do not edit.

A policy decides with which keys of a long prompt an answer goes on: `ponder ask ... --cache snapkv:0.25`, `ponder.load(..., cache="h2o:512")`.
The number is a share of the prompt's keys that a head keeps, or a number of keys. What each policy is, and what it needs to see: CATALOGUE.md.
The prompt itself is read whole, so a policy saves memory and time of the answer, not of the prompt; with `chunk=512` keys are dropped while it is
read, and memory stays small there too. Answers are the same alone and in a crowd. Locret's heads are trained: `ponder train-cache`.
"""
RECALL = """
## Recall, where a failure is the policy's

A decoder of {weights:,} weights ({layers} layers, {heads} heads) that is trained on the spot to find pairs of a key and a value among filler:
`python benchmarks/recall_train.py`, seed {seed}, {cpu_s:.0f} CPU seconds of one thread. It never sees more than a few hundred tokens: positions are
stretched and fillers counted several times, as if contexts were up to {longest:,} tokens long. Each context has 32 pairs; a first question asks
for one or three of them, the second for as many others, as the next turn. Right is who says every token of the answer; by chance 1 in 64.
With all keys (`python benchmarks/long_quality.py recall --length N --specs ""`; n questions of each kind):

| tokens | n | first question, % | second, % |
|---|---|---|---|"""
LOST = """
### {title}

n = {n} questions, contexts: {contexts}, of {tokens:,} tokens, {model} (`python benchmarks/long_quality.py {command}`). % right; in brackets
the difference to all keys in points with its 95 % interval (paired; bootstrap over contexts, or questions where contexts are fewer than
five). Last: how much better the first is answered.

| policy | keys kept | keys and values, MB | first question | second question | first less second |
|---|---|---|---|---|---|"""
FUTURE = """
## What the future attends to

Of the attention that a second question and its answer give to the context, how much falls on keys that a policy keeps, and how far what is read then
is from what would have been read, |o - o'| / |o| (`python benchmarks/cache_oracle.py`; means over layers, heads, rows and {n} contexts of about
{length} tokens, {model}). The policy saw a prompt that ends with that very question (asked), or one that ends with another question (later).
`oracle` keeps what the future will give most attention: no policy can have more mass at an equal budget for each head."""
TABLE = """| policy | keys kept | mass, asked | mass, later | error, asked | error, later |
|---|---|---|---|---|---|"""
RIVAL = """
### Techniques that look ahead beside those that do not

Points of first questions right, mean over the budgets that both had, with a paired 95 % interval (bootstrap over contexts).

| task | difference | questions | budgets | points |
|---|---|---|---|---|"""
CODE = """
### Functions in a file of code

{n} files of {functions} functions, {tokens} tokens each, {model}; % right of a question in the prompt and of a second one asked afterwards, with
Wilson's 95 % interval (`python benchmarks/cache_quality.py`).

| policy | keys kept | first question | second question |
|---|---|---|---|"""
TIME = """
## Quality against seconds

CPU seconds of one thread, a prompt of {tokens:,} tokens read under each policy, and each later token (`python benchmarks/long_quality.py {command}
--timing`); the most bytes of keys and values between steps of 512 tokens while the prompt was read, and afterwards. In a model as small as
the recall model a later token costs what its fixed parts cost; the last tables are of a real one.

![quality against seconds](cache_seconds.svg)

| policy | keys kept | to the first token, s | each later token, ms | most MB | MB afterwards |
|---|---|---|---|---|---|"""
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
READING = """
## How to read it

- The first question stands in the prompt, where a policy that looks at the last tokens sees it. The second comes afterwards: nobody could
  keep what it needs, and what it finds is what a policy keeps without being asked. That gap is the price of policies that look at a question.
- A task shows nothing at a budget that holds all that could be asked for: 32 pairs among 4,096 tokens fit into a twentieth, and fillers attend to
  pairs whatever is asked. Among 64 pairs in 1,024 tokens who keeps what was asked for lets others go, and the second question fails.
- tova looks at one row, in which this model has not yet looked its pairs up; pyramidkv leaves the topmost of three layers 32 keys, and looking up
  happens there. Both are hurt by this model more than by a large one.
- Where few questions were asked (n), nothing is claimed; tasks with fewer than 20 are not drawn.
- Mass is not error: what is left is scaled up to 1, so a head that keeps most of its attention may still read something else.
- Locret's heads tell a pair from filler by the token alone, which a made-up language makes easy. They never saw a question.
- Small models: trends, not a ranking. Intervals overlap wherever they look as if they might.
- Policies drop keys once here, when the prompt has been read.
- Mass and error of SpecKV are with the model itself as the draft, the best that there could be.
"""
LEAST = 20  # questions of a task that is drawn
ORDER = ("dense", "recall", "needle", "squad", "coqa", "qasper", "code")
TITLES = {
    "recall": "recall, 32 pairs", "dense": "recall, 64 pairs", "squad": "SQuAD, many passages", "qasper": "QASPER, yes or no",
    "needle": "16 codes among passages", "coqa": "CoQA, many stories", "code": "modules of code",
}  # fmt: skip
RIVALS = (("speckv", "snapkv"), ("prompt specpc", "prompt gemfilter"), ("prompt specpc", "layers lazyllm"))
Key = tuple[str, str]  # task, model


def read(name: str) -> list[dict]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(rows: list[dict], *keys: str) -> list[dict]:
    """The last row of each combination of `keys`, in the order in which they first came."""
    found: dict[tuple, dict] = {}
    for row in rows:
        found[tuple(row[key] for key in keys)] = row
    return list(found.values())


def recall_lines(cells: dict[Key, list[Cell]], trained: list[dict]) -> list[str]:
    if not trained:
        return []
    facts = trained[-1]
    lines = [RECALL.format(weights=facts["num_weights"], **{k: facts[k] for k in ("layers", "heads", "seed", "cpu_s", "longest")})]
    for (task, _), some in sorted(cells.items(), key=lambda item: int(item[0][0].rpartition("-")[2])):
        if task.startswith("recall"):
            plain = next(cell for cell in some if cell.name == "all keys")
            lines.append(f"| {plain.tokens:,} | {plain.n} | {100 * plain.right['first']:.1f} | {100 * plain.right['second']:.1f} |")
    return lines


def task_lines(task: str, cells: list[Cell]) -> list[str]:
    kind, _, length = task.rpartition("-")
    plain = next(cell for cell in cells if cell.name == "all keys")
    title = f"{TITLES[kind]}, {int(length):,} tokens"
    command = f"{kind} --length {length}" + ("" if plain.model.startswith("recall") else f" --model {plain.model}")
    lines = [LOST.format(title=title, n=plain.n, contexts=plain.contexts, tokens=plain.tokens, model=plain.model, command=command)]
    for cell in cells:
        share = "-" if cell.share is None else f"{100 * cell.share:g} %" if cell.share <= 1 else f"{cell.share:g}"
        nbytes = f"{cell.kv_bytes / 1e6:.3g}" if cell.kv_bytes else "-"
        gap = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * x for x in cell.gap))
        lines.append(f"| {cell.name} | {share} | {nbytes} | {right_of(cell, 'first')} | {right_of(cell, 'second')} | {gap} |")
    return lines


def rival_lines(rows: list[dict], keys: Sequence[Key]) -> list[str]:
    """Who guesses what will be asked beside who does not, mean over budgets."""
    lines = []
    for task, model in keys:
        for one, other in RIVALS:
            found = long_rows.versus(rows, task, model, one, other)
            if found is not None:
                num, budgets, (mean, low, high) = found
                kind, _, length = task.rpartition("-")
                where = f"{TITLES[kind]}, {int(length):,} tokens, {model}"
                lines.append(f"| {where} | {one} less {other} | {num} | {budgets} | {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |")
    return [RIVAL, *lines] if lines else []


def right_of(cell: Cell, which: str) -> str:
    value = f"{100 * cell.right[which]:.0f}"
    if cell.name == "all keys":
        return value
    return value + " ({:+.0f} [{:+.0f}, {:+.0f}])".format(*(100 * x for x in cell.versus[which]))


def future_lines(rows: list[dict]) -> list[str]:
    """A table and two pictures for each model, the trained ones first: real text tells more than made-up pairs."""
    rows = newest([row for row in rows if row.get("when")], "task", "model", "when", "policy", "share")
    lines: list[str] = []
    for model in sorted({row["model"] for row in rows}, key=lambda name: (name.startswith("recall"), name)):
        last = [row for row in rows if row["model"] == model][-1]
        mine = [row for row in rows if all(row[key] == last[key] for key in ("model", "task", "n", "length"))]
        if lines:
            lines += ["", f"### The same for {model}, {last['n']} contexts of about {last['length']} tokens"]
        else:
            lines.append(FUTURE.format(n=last["n"], length=last["length"], model=model))
        lines += ["", f"![mass and error](cache_future-{model}.svg)", "", *TABLE.splitlines()]
        cache_charts.future(mine, ROOT / f"docs/cache_future-{model}.svg")
        for asked in (row for row in mine if row["when"] == "asked"):
            later = next(r for r in mine if r["when"] == "after first" and (r["policy"], r["share"]) == (asked["policy"], asked["share"]))
            numbers = " | ".join(f"{100 * row[field]:.1f}" for field in ("mass", "error") for row in (asked, later))
            lines.append(f"| {asked['policy'].partition('-')[0]} | {100 * asked['share']:g} % | {numbers} |")
        shown = [row for row in mine if row["when"] == "after first" and row["share"] == 0.2]
        cache_charts.heads(shown, ROOT / f"docs/cache_heads-{model}.svg")
        lines += ["", "By layer and key head at a fifth of the keys, the question coming later:", ""]
        lines += [f"![mass by layer and head](cache_heads-{model}.svg)"]
    return lines


def code_lines(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    lines = [CODE.format(**rows[0])]
    for row in rows:
        cells = [f"{100 * row[w]:.0f} [{100 * row[f'{w}_interval'][0]:.0f}, {100 * row[f'{w}_interval'][1]:.0f}]" for w in ("first", "second")]
        lines.append(f"| {row['policy']} | {100 * row['share']:.0f} % | {cells[0]} | {cells[1]} |")
    return lines


def time_lines(rows: list[dict], cells: dict[Key, list[Cell]]) -> list[str]:
    lines: list[str] = []
    timed = newest([row for row in rows if row["what"] == "timing"], "task", "model", "spec")
    for task in sorted({row["task"] for row in timed}, key=lambda name: (name.startswith(("recall", "dense")), name)):
        mine = [row for row in timed if row["task"] == task]
        kind, _, length = task.rpartition("-")
        if not lines:
            lines.append(TIME.format(tokens=mine[0]["tokens"], command=f"{kind} --length {length}"))
            times = {long_rows.name_of(row["spec"]): row for row in mine}
            cache_charts.against_seconds(
                cells.get((task, mine[0]["model"]), []),
                times,
                f"{TITLES[kind]}, {int(length):,} tokens, {mine[0]['model']}",
                ROOT / "docs/cache_seconds.svg",
            )
        else:
            lines += ["", f"{TITLES[kind]}, {mine[0]['tokens']:,} tokens, {mine[0]['model']}:", "", *TIME.splitlines()[-2:]]
        for row in mine:
            name, share = long_rows.name_of(row["spec"])
            kept = "-" if share is None else f"{100 * share:g} %"
            numbers = f"{row['first_cpu_s']:.2f} | {1000 * row['token_cpu_s']:.1f} | {row['most_kv_bytes'] / 1e6:.3g} | {row['kv_bytes'] / 1e6:.3g}"
            lines.append(f"| {name} | {kept} | {numbers} |")
    return lines


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


def picture(cells: dict[Key, list[Cell]]) -> Sequence[str]:
    """The picture of quality against bytes, of every task that compares policies."""
    drawn = {key: some for key, some in cells.items() if len(some) > 3 and some[0].n >= LEAST}
    compared = {f"{TITLES[t.rpartition('-')[0]]}, {int(t.rpartition('-')[2]):,} tokens\n{model}": some for (t, model), some in drawn.items()}
    if not compared:
        return []
    cache_charts.against_bytes(compared, ROOT / "docs/cache.svg")
    return ["", "## Quality against bytes", "", "![quality against bytes](cache.svg)"]


def main() -> None:
    rows = read("long_quality")
    keys = dict.fromkeys((row["task"], row["model"]) for row in rows if row["what"] == "answer")
    cells = {key: long_rows.cells(rows, *key) for key in sorted(keys, key=lambda key: (ORDER.index(key[0].partition("-")[0]), key))}
    trained = [row for row in read("recall") if row["what"] == "trained"]
    lines = [HEAD.rstrip(), *recall_lines(cells, trained), *picture(cells)]
    for (task, _), some in cells.items():
        if len(some) > 1:
            lines += task_lines(task, some)
    lines += rival_lines(rows, list(cells))
    lines += code_lines(newest(read("cache_quality"), "policy", "share"))
    lines += future_lines(read("cache_oracle")) + time_lines(rows, cells) + costs(read("cache"))
    page = ROOT / "docs/cache.md"
    _, mark, rest = page.read_text(encoding="utf-8").partition("\n## Looked-up keys\n")  # these sections are scripts/gen_cache.py's
    shorter = section(read("pruned")) + tail_section(read("tail")) + predictor_section(read("kv_prediction"), read("attend"))
    page.write_text("\n".join(lines) + "\n" + READING + shorter + mark + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
