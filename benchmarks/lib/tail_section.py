"""The section "Trained shortcuts for prompts" of docs/cache.md, from results/tail.jsonl."""

HEAD = """
## Trained shortcuts for prompts

A tail (`--tail FILE`, core/tail.py) changes the model instead of its keys. SwiftKV is one: the layers from one on take keys and values from the state
that enters the first of them, through projections of their own that were trained to say what the model says; neighbours may share a pair (`share`,
AcrossKV), which then also is one page. So of a prompt only rows that somebody asks for pass through those layers: the last one, the
tokens of an option that is scored, places that a probe reads. The engine's answers are bit for bit those of the changed model evaluated
whole, in any chunks, company and forks (tests/engine/test_passes.py). Drafts, cache policies, attention plans, prompt filters, layer plans, a
second model, int8 keys and other devices are refused beside a tail: no law has seen them together.
"""
TRAINED = """
SmolLM2-135M (30 layers), distilled on text of its own (`python benchmarks/tail.py train`): divergence from the model in nats a token, and how often
both say the same, on {held_out} tokens of other texts. Few steps on a crowded machine: a trend,
and no tail to use yet.

| layers before the tail | trained on, tokens | divergence before | after | same token before | after |
|---|---|---|---|---|---|"""
TIMED = """
Time to the first token of a prompt of {tokens} tokens, CPU seconds of one thread, the best of {n} runs beside other work,
so that they differ by more than their work does; FLOPs and bytes are counts (the
ledger counts the output head for every token, and keys of all layers are written for all of them: so not half of it goes)
(`python benchmarks/tail.py prefill --tokens {tokens} --repeats {n} --tail ...`):

| layers before the tail, share | s | GFLOP | of plain | keys and values, MB |
|---|---|---|---|---|"""


def section(rows: list[dict]) -> str:
    parts = [HEAD.rstrip("\n")]
    trained = [row for row in rows if row["what"] == "train"]
    if trained:
        parts.append(TRAINED.format(**trained[0]))
    for row in trained:
        before, after = row["before"], row["after"]
        parts.append(
            f"| {row['start']} | {row['num_tokens']} | {before['kl']:.2f} | {after['kl']:.2f} | {100 * before['agreement']:.0f} % | "
            f"{100 * after['agreement']:.0f} % |"
        )
    timed = [row for row in rows if row["what"] == "prefill"]
    if timed:
        parts.append(TIMED.format(**timed[0]))
    for row in timed:
        name = "plain" if row["start"] is None else f"{row['start']}, {row['share']}"
        share = 100 * row["flops"] / timed[0]["flops"]
        parts.append(f"| {name} | {row['seconds']:.2f} | {row['flops'] / 1e9:.0f} | {share:.0f} % | {row['nbytes'] / 1e6:.1f} |")
    return "\n".join(parts) + "\n"
