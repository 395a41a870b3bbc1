"""What cache policies lose: `python benchmarks/cache_quality.py [--items 24] [--functions 40]`. Rows in results/cache_quality.jsonl.

A file of many small functions, each of which returns a number of four digits, and a question about one of them: the policy sees both. Then
a second question about another one, which it could not foresee, as the next turn of the chat. Each file is read once, with what every policy must
see; each policy and share of keys then goes on from a fork of the same pages. An answer is right when every token of the number is the most
likely one. Policies drop keys once, after the prompt. Intervals are Wilson's at 95 %.
"""

import argparse
import math
import random
import time

import torch
from lib import rows

import ponder
from ponder.catalogue import CACHES, cache_policy, open_model
from ponder.core.evidence import Needs
from ponder.engine.attend import Span
from ponder.engine.keep import Keeper, Record
from ponder.engine.pages import Sequence
from ponder.engine.process import LocalProcess

SHARES = (0.05, 0.1, 0.2, 0.4)
CHUNK = 512
POLICIES = {name: policy for name, policy in CACHES.items() if not policy.scorer.needs.num_ahead}  # forks of one reading draft nothing
WORDS = ("copper", "harbor", "meadow", "signal", "velvet", "anchor", "bishop", "candle", "desert", "ember", "falcon", "garnet", "hollow", "island",
         "jacket", "kernel", "ladder", "marble", "needle", "orchid", "pepper", "quartz", "ribbon", "saddle", "timber", "umber", "violet", "walnut",
         "yellow", "zephyr", "basalt", "cinder", "dapple", "ferry", "glacier", "heron", "indigo", "juniper", "kettle", "lantern", "mosaic", "nectar",
         "otter", "pebble", "quiver", "raven", "sorrel", "thistle")  # fmt: skip
ASK = "What number does {}_limit() return? Answer with the number only."


def item(seed: int, num_functions: int) -> tuple[str, list[tuple[str, str]]]:
    """(source text, [(function, number), ...] of the two that are asked about)."""
    rng = random.Random(seed)
    names = rng.sample(WORDS, num_functions)
    numbers = [str(rng.randint(1000, 9999)) for _ in names]
    text = "".join(
        f'def {name}_limit():\n    """The most that one {name} may take before it is refused."""\n    return {number}\n\n\n'
        for name, number in zip(names, numbers)
    )
    asked = rng.sample(range(num_functions), 2)
    return text, [(names[i], numbers[i]) for i in asked]


def forward(process: LocalProcess, pages: Sequence, tokens: list[int], num_prompt: int, watch=None) -> torch.Tensor:
    """Hidden rows of the next tokens of a sequence; watch(layer, start, q, lse) sees its queries."""
    start = pages.num_tokens
    assert pages.reserve(start + len(tokens)), "kv_bytes is too small"
    plan = process.attention.plan([Span(pages, start, start + len(tokens), num_prompt)])

    def attend(layer, q, k, v):
        if watch is None:
            return plan.attend(layer, q, k, v)
        out, lse = plan.attend_with_lse(layer, q, k, v)
        watch(layer, start, q, lse)
        return out

    hidden = process.decoder.forward(torch.tensor(tokens), plan.positions, attend, plan.prompts)
    pages.num_tokens = start + len(tokens)
    return hidden


def is_right(process: LocalProcess, before: torch.Tensor, pages: Sequence, tokens: list[int], num_prompt: int) -> bool:
    """Whether every token is the most likely one; the sequence goes on with them. before: the hidden row that the first is drawn from."""
    hidden = forward(process, pages, tokens, num_prompt)
    logits = process.decoder.logits(torch.cat([before, hidden[:-1]]))
    return logits.argmax(-1).tolist() == tokens


def run(process: LocalProcess, seed: int, num_functions: int) -> tuple[int, dict[tuple[str, float], tuple[bool, bool]]]:
    """Prompt tokens, and for each policy and share whether the first and the second answer are right."""
    text, ((first, one), (second, two)) = item(seed, num_functions)
    question = ((("user", f"```python\n{text}```\n{ASK.format(first)}")),)
    prompt = process.tokenizer.render(question)
    answer = process.tokenizer.encode(one)
    again = process.tokenizer.render((*question, ("assistant", one), ("user", ASK.format(second))))[len(prompt) + len(answer) :]
    needs = {policy.scorer.needs for policy in POLICIES.values()}
    parts = (process.decoder.config, process.pool, process.attention.kernel)
    keepers = {need: Keeper(next(p for p in POLICIES.values() if p.scorer.needs == need), *parts) for need in needs}
    pages = Sequence(process.pool)
    records: dict[Needs, Record] = {}
    for need, keeper in keepers.items():
        records[need] = keeper.begin(len(prompt))

    def watch(layer: int, start: int, q, lse) -> None:
        for need, keeper in keepers.items():
            row = max(start, need.first_row(len(prompt)))
            if need.has_columns and row < start + len(q):
                keeper._sum_columns(records[need], layer, pages, [(row, q[row - start :], lse[row - start :])])

    hidden = torch.empty(0)
    for at in range(0, len(prompt), CHUNK):
        hidden = forward(process, pages, prompt[at : at + CHUNK], len(prompt), watch)
    found = {}
    for name, share in [("none", 1.0), *((name, share) for name in POLICIES for share in SHARES)]:
        fork = pages.fork()
        if name != "none":
            policy = cache_policy(f"{name}:{share}")
            keeper = Keeper(policy, *parts)
            assert keeper.drop_keys(fork, records[policy.scorer.needs].copy(len(prompt)))
        right = is_right(process, hidden[-1:], fork, answer, len(prompt))
        after = forward(process, fork, again, len(prompt))
        found[name, share] = right, is_right(process, after[-1:], fork, process.tokenizer.encode(two), len(prompt))
        fork.release()
    pages.release()
    return len(prompt), found


def interval(num_right: int, n: int) -> tuple[float, float]:
    """Wilson's, at 95 %."""
    z, p = 1.96, num_right / n
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    return round(middle - half, 3), round(middle + half, 3)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--functions", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further item after so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    process = open_model(ponder.pull(args.model), threads=1)
    start, lengths, found = time.monotonic(), [], []
    for seed in range(args.items):
        if time.monotonic() - start > args.seconds:
            break
        length, answers = run(process, seed, args.functions)
        lengths.append(length)
        found.append(answers)
        print(f"item {seed}: {length} tokens, {time.monotonic() - start:.0f} s, plain {answers['none', 1.0]}", flush=True)
    n = len(found)
    for name, share in found[0]:
        first, second = (sum(answers[name, share][which] for answers in found) for which in (0, 1))
        row = {
            "what": "needle", "model": args.model, "policy": name, "share": share, "n": n, "functions": args.functions,
            "tokens": sum(lengths) // n, "first": first / n, "first_interval": interval(first, n), "second": second / n,
            "second_interval": interval(second, n), "seeds": f"0-{n - 1}",
        }  # fmt: skip
        rows.append("cache_quality", row)


if __name__ == "__main__":
    main()
