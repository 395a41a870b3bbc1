"""The sections "Predicted keys" and "Longer than the model was made for" of docs/cache.md, from results/kv_prediction.jsonl and attend.jsonl."""

import math

HEAD = """
## Predicted keys

A key predictor (`--predictor FILE`, core/predictor.py) reads prompts in the model's place: KV Prediction. Its reader is made of some of the model's
own layers, corrected by matrices of low rank; trained maps make the keys and values of all layers of the reader's. Through the model itself pass
a prompt's last token and the answer. With the model as its own reader it is plain decoding bit for bit; with any other the engine's answers are
the model's behind those keys, in any chunks, company and forks, and a prefix that is shared never holds computed keys of a prompt
(tests/engine/test_supplied.py). The reader's own keys lie beside the model's, so a prompt takes more memory, not less. Refused beside a
predictor is what is refused beside a tail. Train one: `ponder train-keys`.
"""
TRAINED = """
SmolLM2-135M (30 layers), corrections of rank {rank}, on stretches of {length} tokens of Python's standard library
(`python benchmarks/kv_prediction.py train`), files of other names held out. The first half of a stretch is the prompt; of the tokens behind it, the
divergence from the model in nats and how often both would say the same: as the predictor begins (each layer has the keys of the nearest layer of the
reader before it), with maps in closed form, and trained; `no prompt`: the model that sees nothing of it. One seed: a trend.

| layers of the reader | trained on, tokens, s | held out, tokens | begun | closed form | trained | no prompt | first token, trained | file, MB |
|---|---|---|---|---|---|---|---|---|"""
TIMED = """
Time to the first token of a prompt of {tokens} tokens, CPU seconds of one thread, the best of {n} in turns; FLOPs and bytes are counts (FLOPs hold
the output head for every token, on both sides) (`python benchmarks/kv_prediction.py prefill --tokens {tokens} --repeats {n} --predictor ...`):

| layers of the reader | s | GFLOP | of plain | keys and values, MB |
|---|---|---|---|---|"""
LONGER = """
## Longer than the model was made for

`--attend dual_chunk` meets far keys from distances that the model was trained for; `dual_chunk_sparse` finds at those distances which columns and
diagonals of a prompt hold enough of the attention, and leaves out the rest (Qwen2.5-1M). Needles, by a two-layer model trained at
{trained_len} tokens (`python benchmarks/recall_model.py --trained {trained_len} --steps {steps} --sequences {n}`), % right of {n} questions
[95 %], and how much of the keys before them the prompt's tokens met. `behind`: the question follows the prompt, and meets all keys. `within`: it
is the prompt's last token, and meets what rows before it chose, which cannot know what it asks for. Refined: looks again every 64 rows.

| tokens | plan | behind | within | keys met, % |
|---|---|---|---|---|"""
NAMES = {
    "sparse_one_look": "sparse, mass 0.95, one look a segment", "sparse": "sparse, mass 0.95, refined",
    "sparse_continuous": "the same, found at distances not clamped", "sparse_99": "sparse, mass 0.99, refined",
}  # fmt: skip
PREFILL = """
A prompt of {tokens} tokens of source code, {model}, whose own context is 8192 (`python benchmarks/attend.py prefill {model} --plan
{plan} --against {against} --tokens {tokens}`), CPU seconds of one thread: {plain_cpu_s} s with all keys by dual chunks, {plan_cpu_s} s with sparse
prefill, {times_faster} times as fast, {mass} % of the attention mass in the mean over layers (the least: {least} %).
"""


def section(rows: list[dict], attend: list[dict]) -> str:
    trained = list({(row["layers"], row["pick"]): row for row in rows if row["what"] == "train"}.values())
    timed = list({row["layers"]: row for row in rows if row["what"] == "prefill"}.values())
    parts = [HEAD.rstrip("\n")]
    if trained:
        parts.append(TRAINED.format(**trained[0]))
    for row in trained:
        cells = [f"{row[name]['kl']:.2f}, {100 * row[name]['agreement']:.0f} %" for name in ("begun", "mapped", "trained")]
        found = row["trained"]
        blind, first = (f"{found[f'{name}_kl']:.2f}, {100 * found[f'{name}_agreement']:.0f} %" for name in ("blind", "first"))
        learned = f"{row['num_tokens'] / 1e6:.2f} M, {row['seconds']:.0f} ({row['device']})"
        parts.append(
            f"| {row['layers']}, {row['pick']} | {learned} | {row['held_out']} | {' | '.join(cells)} | {blind} | {first} | {row['file_mb']} |"
        )
    if timed:
        parts.append(TIMED.format(**timed[0]))
    for row in timed:
        share = 100 * row["flops"] / timed[0]["flops"]
        name = "plain" if row["layers"] is None else row["layers"]
        parts.append(f"| {name} | {row['seconds']:.2f} | {row['flops'] / 1e9:.0f} | {share:.0f} % | {row['nbytes'] / 1e6:.1f} |")
    return "\n".join(parts) + "\n" + longer(attend)


def longer(rows: list[dict]) -> str:
    recall = {row["len"]: row for row in rows if row["what"] == "recall" and "sparse" in row}
    prefill = [row for row in rows if row["what"] == "prefill" and row["plan"].startswith("dual_chunk_sparse")]
    parts = []
    if recall:
        parts.append(LONGER.format(**next(iter(recall.values()))))
    for length, row in sorted(recall.items()):
        for name in ("plain", "dual_chunk", *NAMES):
            within, met = (row.get(f"{name}_{kind}") for kind in ("within", "met"))
            cells = [cell(row[name], row["n"]), "the same" if within is None else cell(within, row["n"])]
            parts.append(f"| {length} | {NAMES.get(name, name)} | {' | '.join(cells)} | {100 if met is None else 100 * met:.0f} |")
    if prefill:
        row = prefill[-1]
        mass, least = (round(100 * x, 1) for x in (row["mass_mean"], min(row["mass_by_layer"])))
        parts.append(PREFILL.format(**row, mass=mass, least=least).rstrip("\n"))
    return "\n".join(parts) + "\n" if parts else ""


def cell(share: float, num: int) -> str:
    """With Wilson's interval, 95 %."""
    z = 1.959964
    middle, half = share + z * z / (2 * num), z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    low, high = ((middle + side * half) / (1 + z * z / num) for side in (-1, 1))
    return f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
