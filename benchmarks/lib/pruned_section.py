"""The section "Pruned prompts" of docs/cache.md, from results/pruned.jsonl."""

TITLES = {"needle": "prompt kept", "time": "spec"}
HEAD = """
## Pruned prompts

What a cache policy saves it saves after the prompt was read. These save the reading itself, which is what the first token waits for:

- a prompt filter (`--prompt`): somebody reads all of the prompt as far as the filter must see, and the model then reads the chosen tokens alone, at
  positions counted from 0, as if they had been the prompt. So everything else goes on as ever: prefixes are shared, drafts, cache policies and
  attention plans work on what is left. `gemfilter` lets an early layer of the model choose, `specpc` a draft model.
- a layer plan (`--layers`): tokens leave behind some layers and rest there; positions stay; when a token of the answer looks at one that left, it
  goes on from where it rests. `lazyllm` is one. Drafts, cache policies and attention plans are refused beside it, as layers know different tokens.

Where all is kept both are plain decoding, bit for bit. Answers are the same alone and in a crowd. `--cache speckv:0.1` is a cache policy: it
drops keys after the prompt, by what a drafted continuation attends to.
"""
TIME = """
CPU seconds of one thread until the first token is there ({model}, `python benchmarks/pruned.py time`):

| spec | tokens | read by the model | s | gain |
|---|---|---|---|---|"""
NEEDLE = """
A small decoder that was trained to recall pairs (`python benchmarks/recall_train.py`): which value has a key, of {pairs} pairs among {len}
tokens, {n} contexts, % right with Wilson's 95 % interval (`python benchmarks/pruned.py needle`); with the whole prompt {plain}. For
cache policies the answer begins with the key, as they drop keys behind the prompt. `specpc` and `speckv` draft with the model itself.
Of the three layers the last one looks the pair up: a cut or a choice before it, by a layer that does not look there, loses it.

| spec | {shares} |
|---|{lines}"""


def section(rows: list[dict]) -> str:
    parts = [HEAD]
    timed: dict[tuple, dict] = {(row["spec"], row["context"]): row for row in rows if row["what"] == "time"}
    if timed:
        parts.append(TIME.format(model=next(iter(timed.values()))["model"]))
        parts += [f"| {r['spec']} | {r['tokens']} | {r['read']} | {r['seconds']:.2f} | {r['gain']:.2f} x |" for r in timed.values()]
    found = {row["spec"]: row for row in rows if row["what"] == "needle"}
    if found:
        parts.append(needles(found))
    return "\n".join(parts) + "\n"


def needles(found: dict[str, dict]) -> str:
    table: dict[str, dict[str, str]] = {}
    for spec, row in found.items():
        name, _, rest = spec.partition(":")
        share, _, settings = rest.partition(",")
        table.setdefault(f"{name}:SHARE,{settings}" if settings else name, {})[share] = cell(row)
    shares = list(dict.fromkeys(share for cells in table.values() for share in cells if share))
    plain = table.pop("plain")[""]
    head = NEEDLE.format(**found["plain"], plain=plain, shares=" | ".join(f"{100 * float(s):.0f} %" for s in shares), lines="---|" * len(shares))
    return "\n".join([head, *(f"| {name} | " + " | ".join(cells[s] for s in shares) + " |" for name, cells in table.items())])


def cell(row: dict) -> str:
    low, high = row["interval"]
    return f"{100 * row['right']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
