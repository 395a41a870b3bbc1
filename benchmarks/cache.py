"""What cache policies cost and save: `python benchmarks/cache.py [evidence|decode] [--model NAME] [--context N]`. Rows in results/cache.jsonl.

evidence  one prompt of --context tokens under every policy: CPU seconds of reading it, of its attention, of what the policy had to see and do
decode    the same prompt, then tokens one by one: CPU seconds a token with all keys and with a tenth of them, beside the roofline of both,
          and the bytes that keys and values take

All times are CPU seconds of one thread, so that a busy machine changes them little; repeats take turns and the least counts.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lib import rows

import ponder
from ponder.catalogue import CACHES, open_model
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import LocalProcess


@dataclass
class Clock:
    """CPU seconds inside functions that it wraps."""

    seconds: dict[str, float] = field(default_factory=dict)

    def wrap(self, name: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        return timed


def ask_of(process: LocalProcess, num_tokens: int, num_new: int) -> Extend:
    """An ask whose prompt has about num_tokens tokens."""
    words = "The harbour was quiet that morning, and the boats lay as they had been left; nobody spoke of the storm. "
    text = words
    while process.prompt_len(chat(text)) < num_tokens - 40:
        text += words * max(1, (num_tokens - process.prompt_len(chat(text))) // 40)
    prompt = chat(text, max_tokens=num_new)
    return Extend(prefix=Prefix(prompt), seed=0, sampling=Sampling(temperature=0), forced=(100,) * num_new, max_tokens=num_new)


def clocked(process: LocalProcess) -> Clock:
    clock = Clock()
    plan = process.attention.plan

    def planned(spans):
        made = plan(spans)
        made.attend = clock.wrap("attention", made.attend)
        if hasattr(made, "attend_with_lse"):
            made.attend_with_lse = clock.wrap("attention", made.attend_with_lse)
        return made

    process.attention.plan = planned
    if isinstance(process, KeepingProcess):
        process.keeper._sum_columns = clock.wrap("evidence", process.keeper._sum_columns)
        process.keeper.drop_keys = clock.wrap("dropping", process.keeper.drop_keys)
    return clock


def read(process: LocalProcess, ask: Extend) -> float:
    """CPU seconds until the first token is there."""
    start = time.process_time()
    process.add(ask)
    while not process.running or process.running[0][1].num_computed < process.running[0][1].num_prompt:
        process.step()
    return time.process_time() - start


def evidence(path, model: str, context: int, names: list[str]) -> None:
    for name in names:
        process = open_model(path, threads=1, accelerations=Accelerations(cache=f"{name}:0.1"))
        clock, ask = clocked(process), ask_of(process, context, 2)
        seconds = read(process, ask)
        spent = clock.seconds.get("evidence", 0.0) + clock.seconds.get("dropping", 0.0)
        row = {
            "what": "evidence", "policy": name, "model": model, "tokens": process.prompt_len(ask.prefix.prompt), "prefill_seconds": seconds,
            "attention_seconds": clock.seconds["attention"], "evidence_seconds": clock.seconds.get("evidence", 0.0),
            "dropping_seconds": clock.seconds.get("dropping", 0.0), "of_prefill": spent / (seconds - spent),
            "of_attention": clock.seconds.get("evidence", 0.0) / clock.seconds["attention"],
        }  # fmt: skip
        rows.append("cache", row | {"figure": f"seeing and dropping at {row['tokens']} tokens: {100 * row['of_prefill']:.1f} % of prefill time"})


def decode(path, model: str, context: int, num_new: int) -> None:
    found = {}
    for name in (None, "snapkv:0.1", "streaming:0.1", "adakv:0.1"):
        process = open_model(path, threads=1, accelerations=Accelerations(cache=name))
        ask = ask_of(process, context, num_new + 8)
        read(process, ask)
        pages = process.running[0][1].pages
        times = []
        for _ in range(num_new):
            start = time.process_time()
            process.step()
            times.append(time.process_time() - start)
        config = process.decoder.config
        num_held = pages.num_tokens - pages.dropped.mean()
        kv_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim * num_held
        held_bytes = int(pages.num_pages.sum()) * process.pool.page_nbytes
        nominal = (0.1 if name else 1.0) * process.prompt_len(ask.prefix.prompt) + num_new
        found[name] = {
            "what": "decode", "policy": name or "none", "model": model, "tokens": process.prompt_len(ask.prefix.prompt),
            "seconds_per_token": sorted(times)[len(times) // 4], "weight_bytes": process.decoder.nbytes, "kv_bytes": int(kv_bytes),
            "page_bytes": held_bytes, "nominal_bytes": int(nominal * config.num_layers * config.num_kv_heads * process.pool.page_nbytes / 16),
            "pool_bytes": process.nbytes,
        }  # fmt: skip
        plain = found[None]
        roofline = (plain["weight_bytes"] + plain["kv_bytes"]) / (found[name]["weight_bytes"] + found[name]["kv_bytes"])
        gain = plain["seconds_per_token"] / found[name]["seconds_per_token"]
        row = found[name] | {"gain": gain, "roofline_gain": roofline, "of_roofline": gain / roofline}
        row["bytes_over_nominal"] = row["page_bytes"] / row["nominal_bytes"] - 1
        rows.append("cache", row | {"figure": f"decoding at {row['tokens']} tokens: {gain:.2f} x plain, roofline {roofline:.2f} x"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("evidence", "decode"), default=None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--policies", default=",".join(CACHES))
    parser.add_argument("--tokens", type=int, default=24, help="generated, in decode")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = ponder.pull(args.model)
    if args.what in (None, "evidence"):
        evidence(path, args.model, args.context, args.policies.split(","))
    if args.what in (None, "decode"):
        decode(path, args.model, args.context, args.tokens)


if __name__ == "__main__":
    main()
