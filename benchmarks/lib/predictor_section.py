"""The sections "Predicted keys" and "Longer than the model was made for" of docs/cache.md, from results/kv_prediction.jsonl and attend.jsonl."""

import math
import re

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
SAID = """
In the engine, greedy answers of 12 tokens behind {n} prompts of {prompt} tokens that were not trained on (`python benchmarks/kv_prediction.py answers
--held-out {n} --predictor ...`), reader of {layers} layers: the first token is plain decoding's in {first} %, the first {tokens_same} in the mean.
"""
TIMED = """
Time to the first token of a prompt of {tokens} tokens, CPU seconds of one thread, the best of {n} in turns; FLOPs and bytes are counts (FLOPs hold
the output head for every token, on both sides) (`python benchmarks/kv_prediction.py prefill --tokens {tokens} --repeats {n} --predictor ...`):

| layers of the reader | s | GFLOP | of plain | keys and values, MB |
|---|---|---|---|---|"""
LONGER = """
## Longer than the model was made for

`--attend dual_chunk` meets far keys from distances that the model was trained for; `dual_chunk_sparse` finds at those distances which columns and
diagonals of a prompt hold enough of the attention, and leaves out the rest (Qwen2.5-1M). Needles, by a two-layer model trained at
{trained_len} tokens (`python benchmarks/recall_model.py --trained {trained_len} --steps {steps} --sequences {n}`; other n: other runs of it), % right
of n questions [95 %], and how much of the keys before them the prompt's tokens met. `behind`: the question follows the prompt, and meets all keys.
`within`: it is the prompt's last token, and meets what rows before it chose, which cannot know what it asks for. Refined: looks again every 64
rows. This model's attention is flat over filler, so that much mass is many keys; almost all needles are found at any mass tried.

| tokens | n | plan | behind | within | keys met, % |
|---|---|---|---|---|---|"""
SPARSE = re.compile(r"sparse_(one_look_|continuous_|)(\d+)")
LOOKS = {"one_look_": "one look a segment", "": "refined", "continuous_": "refined, found at distances that are not clamped"}
PREFILL = """
A prompt of {tokens} tokens of source code, {model}, whose own context is 8192 (`python benchmarks/attend.py prefill {model} --plan
{plan} --against {against} --tokens {tokens}`), CPU seconds of one thread: {plain_cpu_s} s with all keys by dual chunks, {plan_cpu_s} s with sparse
prefill, {times_faster} times as fast, {mass} % of the attention mass in the mean over layers (the least: {least} %).
"""


def section(rows: list[dict], attend: list[dict]) -> str:
    trained = list({(row["layers"], row["pick"]): row for row in rows if row["what"] == "train"}.values())
    said = {row["layers"]: row for row in rows if row["what"] == "answers"}
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
    parts += [SAID.format(**row, first=round(100 * row["first_same"])).rstrip("\n") for row in said.values()]
    if timed:
        parts.append(TIMED.format(**timed[0]))
    for row in timed:
        share = 100 * row["flops"] / timed[0]["flops"]
        name = "plain" if row["layers"] is None else row["layers"]
        parts.append(f"| {name} | {row['seconds']:.2f} | {row['flops'] / 1e9:.0f} | {share:.0f} % | {row['nbytes'] / 1e6:.1f} |")
    return "\n".join(parts) + "\n" + longer(attend)


def longer(rows: list[dict]) -> str:
    recall = sorted((row for row in rows if row["what"] == "recall" and any(map(SPARSE.fullmatch, row))), key=lambda row: (-row["n"], row["len"]))
    prefill = [row for row in rows if row["what"] == "prefill" and row["plan"].startswith("dual_chunk_sparse")]
    parts = [LONGER.format(**recall[0])] if recall else []
    for row in recall:
        for name in ("plain", "dual_chunk", *sorted((name for name in row if SPARSE.fullmatch(name)), key=lambda name: (-share_of(name), name))):
            within, met = (row.get(f"{name}_{kind}") for kind in ("within", "met"))
            cells = [cell(row[name], row["n"]), "the same" if within is None else cell(within, row["n"])]
            parts.append(f"| {row['len']} | {row['n']} | {title(name)} | {' | '.join(cells)} | {100 if met is None else 100 * met:.0f} |")
    if prefill:
        row = prefill[-1]
        mass, least = (round(100 * x, 1) for x in (row["mass_mean"], min(row["mass_by_layer"])))
        parts.append(PREFILL.format(**row, mass=mass, least=least).rstrip("\n"))
    return "\n".join(parts) + "\n" if parts else ""


def share_of(name: str) -> int:
    found = SPARSE.fullmatch(name)
    return int(found[2]) if found else 100


def title(name: str) -> str:
    found = SPARSE.fullmatch(name)
    return f"sparse, mass {share_of(name) / 100}, {LOOKS[found[1]]}" if found else name


def cell(share: float, num: int) -> str:
    """With Wilson's interval, 95 %."""
    z = 1.959964
    middle, half = share + z * z / (2 * num), z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    low, high = ((middle + side * half) / (1 + z * z / num) for side in (-1, 1))
    return f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
