"""What pruned prompts save and lose: `python benchmarks/pruned.py [time|needle]`. Rows in results/pruned.jsonl.

time    one prompt of --context tokens under every spec: CPU seconds of one thread until the first token is there; the least of --repeats counts
needle  a model of three layers that recall_train.py made: which value does a key have, of --pairs pairs in a context of --len tokens; % right
        with the whole prompt and with a share of it, with Wilson's 95 % interval; every spec sees the same contexts. The prompt ends in the
        key; for cache policies, which drop keys behind the prompt, the answer begins with the key and goes on with the value.

A spec is KIND=SPEC with a kind of core.accelerations: prompt=gemfilter:0.1, layers=lazyllm:0.1, cache=snapkv:0.1.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from cache import ask_of
from lib import recall, rows

import ponder
from ponder.catalogue import open_model
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, chat
from ponder.core.cache import cache_dir
from ponder.testing.run import answer_turn

TIMED = (
    "plain", "prompt=gemfilter:0.1", "layers=lazyllm:0.1", "prompt=gemfilter:0.1,layer=0.25", "prompt=specpc:0.1,start=8",
)  # fmt: skip
SHARES = (0.05, 0.1)
NEEDLE = (
    "prompt=gemfilter:{share},layer=2,first=0,last=4", "prompt=gemfilter:{share},layer=1,first=0,last=4",
    "prompt=specpc:{share},start=2,window=4,kernel=3,neighbours=3",
    "layers=lazyllm:{share},start=0.67,num_cuts=1", "layers=lazyllm:{share},start=0.34,num_cuts=2", "cache=snapkv:{share},window=4",
    "cache=speckv:{share},window=4,ahead=2",
)  # fmt: skip


def given(spec: str) -> Accelerations:
    kind, _, rest = spec.partition("=")
    return PLAIN if spec == "plain" else Accelerations(**{kind: rest})


def seconds_to_first(path, spec: str, context: int) -> tuple[float, int, int]:
    """CPU seconds, tokens of the prompt, and those that the model reads."""
    process = open_model(path, threads=1, accelerations=given(spec))
    plain = open_model(path, threads=1)
    ask = ask_of(plain, context, 1)
    num = plain.prompt_len(ask.prefix.prompt)
    start = time.process_time()
    list(answer_turn([ask], process))
    return time.process_time() - start, num, process.prompt_len(ask.prefix.prompt)


def timed(model: str, context: int, repeats: int, specs: list[str]) -> None:
    path = ponder.pull(model)
    first = math.inf
    for spec in specs:
        found = []
        for _ in range(repeats):
            seconds, num, num_read = seconds_to_first(path, spec, context)
            found.append(seconds)
        least = min(found)
        first = least if spec == specs[0] else first
        rows.append("pruned", {
            "what": "time", "model": model, "spec": spec, "context": context, "tokens": num, "read": num_read, "seconds": least, "all": found,
            "gain": first / least, "figure": f"{spec} at {num} tokens: {least:.2f} CPU s to the first token, {first / least:.2f} x",
        })  # fmt: skip


def num_right(path: Path, spec: str, length: int, num: int, pairs: int) -> int:
    """Contexts whose question is answered with its key and value, greedily."""
    process = open_model(path, "bf16", threads=1, accelerations=given(spec))
    found, is_after = 0, spec.startswith("cache")
    for seed in range(num):
        rng = random.Random(seed)
        world = recall.world(rng, length, pairs)
        key = rng.choice(sorted(world.pairs))
        text = recall.text_of(world.context) + recall.text_of([*world.question([key]), *([] if is_after else [key])])
        ask = Extend(prefix=Prefix(chat(text, max_tokens=4)), seed=0, sampling=GREEDY, max_tokens=1 + is_after)
        (answer,) = answer_turn([ask], process)
        found += isinstance(answer, Extension) and answer.prefix.tokens[-1] == world.pairs[key]
        process.drop_cache()
    return found


def needle(model: str, length: int, num: int, pairs: int, specs: list[str]) -> None:
    path = Path(model) if Path(model).exists() else cache_dir() / "models" / model
    for spec in ["plain", *(spec.format(share=share) for spec in specs for share in SHARES)]:
        right = num_right(path, spec, length, num, pairs)
        rows.append("pruned", {
            "what": "needle", "spec": spec, "model": path.name, "n": num, "len": length, "pairs": pairs, "right": right / num,
            "interval": interval(right, num), "figure": f"{spec}: {100 * right / num:.1f} % right",
        })  # fmt: skip


def interval(num_right: int, n: int) -> tuple[float, float]:
    """Wilson's, at 95 %."""
    z, p = 1.96, num_right / n
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    return round(middle - half, 3), round(middle + half, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "needle"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--specs", default=";".join(TIMED))
    parser.add_argument("--recall", default="recall-0", help="folder of a model that recall_train.py made, or its name in the cache")
    parser.add_argument("--len", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--needles", default=";".join(NEEDLE))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "time":
        timed(args.model, args.context, args.repeats, args.specs.split(";"))
    else:
        needle(args.recall, args.len, args.n, args.pairs, args.needles.split(";"))


if __name__ == "__main__":
    main()
