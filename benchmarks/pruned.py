"""What pruned prompts save and lose: `python benchmarks/pruned.py [time|needle]`. Rows in results/pruned.jsonl.

time    one prompt of --context tokens under every spec: CPU seconds of one thread until the first token is there; specs take turns, the least counts
needle  a decoder of --layers layers, trained on the spot to recall pairs among filler (recall_model.py), asked for one pair at the end of the
        prompt; the draft has two layers:
        % right with the whole prompt and with a share of it, with Wilson's 95 % interval; every spec sees the same sequences

A spec is KIND=SPEC with a kind of core.accelerations: prompt=gemfilter:0.1, layers=lazyllm:0.1, cache=snapkv:0.1.
"""

import argparse
import math
import time
from dataclasses import dataclass

import recall_model
import torch
from cache import ask_of
from lib import rows
from torch import Tensor

import ponder
from ponder.catalogue import SCHEDULERS, accelerated, open_model
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, chat
from ponder.engine.open import process_for
from ponder.engine.settings import Settings
from ponder.testing.run import answer_turn

TIMED = (
    "plain", "prompt=gemfilter:0.1,layer=0.2", "prompt=gemfilter:0.1,layer=0.3", "prompt=gemfilter:0.1", "prompt=gemfilter:1024", "prompt=specpc:0.1",
    "layers=lazyllm:0.3", "layers=lazyllm:0.1", "layers=lazyllm:0.1,start=0.2",
)  # fmt: skip
SHARES = (0.05, 0.1, 0.2, 0.5)
NEEDLE = (
    "prompt=gemfilter:{share},layer={layer},first=0,last=2", "prompt=specpc:{share},start=1,window=2,kernel=3,neighbours=3",
    "prompt=specpc:{share},model=draft,start=1,window=2,kernel=3,neighbours=3", "layers=lazyllm:{share},start=0.5,num_cuts=2",
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
    found: dict[str, list[float]] = {spec: [] for spec in specs}
    nums = {}
    for _ in range(repeats):
        for spec in specs:
            seconds, num, num_read = seconds_to_first(path, spec, context)
            found[spec].append(seconds)
            nums[spec] = num, num_read
    for spec in specs:
        least = min(found[spec])
        gain = min(found[specs[0]]) / least
        rows.append("pruned", {
            "what": "time", "model": model, "spec": spec, "context": context, "tokens": nums[spec][0], "read": nums[spec][1], "seconds": least,
            "all": found[spec], "gain": gain, "figure": f"{spec} at {nums[spec][0]} tokens: {least:.2f} CPU s to the first token, {gain:.2f} x",
        })  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """A Tokenizer whose prompts are numbers in words."""

    pieces: tuple[bytes, ...] = tuple(f" {i}".encode() for i in range(recall_model.VOCAB))
    eos_ids: frozenset[int] = frozenset()
    vocab_size: int = recall_model.VOCAB

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        return self.encode(messages[0][1])


def num_right(decoder, draft, spec: str, tokens: Tensor, wanted: Tensor) -> int:
    settings = accelerated(Settings(kv_bytes=1 << 26, twins=lambda twin: (draft, Numbers())), given(spec))
    process = process_for(settings)(decoder, Numbers(), SCHEDULERS["sarathi"], settings)
    asks = [Extend(prefix=Prefix(chat(" ".join(map(str, row.tolist())), max_tokens=1)), seed=0, sampling=GREEDY) for row in tokens]
    found = [answer for answer in answer_turn(asks, process) if isinstance(answer, Extension)]
    return sum(int(answer.prefix.tokens[0]) == int(value) for answer, value in zip(found, wanted, strict=True))


def needle(num_layers: int, steps: int, num: int, seed: int) -> None:
    length, made = 128, []
    for count in (2, num_layers):
        recall_model.LAYERS = count
        net, seconds = recall_model.train(length, steps, seed)
        made.append(recall_model.decoder_of(net, length + 8))
    draft, decoder = made
    tokens, wanted = recall_model.pairs_among_filler(num, length, torch.Generator().manual_seed(seed + 1000), asked=1)
    tokens, wanted = tokens[:, :-1], wanted[:, -2]
    specs = ["plain", *(spec.format(share=share, layer=num_layers - 1) for spec in NEEDLE for share in SHARES)]
    for spec in specs:
        right = num_right(decoder, draft, spec, tokens, wanted)
        rows.append("pruned", {
            "what": "needle", "spec": spec, "layers": num_layers, "steps": steps, "seed": seed, "n": num, "len": length, "right": right / num,
            "interval": interval(right, num), "train_cpu_s": round(seconds, 1), "figure": f"{spec}: {100 * right / num:.1f} % right",
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
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "time":
        timed(args.model, args.context, args.repeats, args.specs.split(";"))
    else:
        needle(args.layers, args.steps, args.n, args.seed)


if __name__ == "__main__":
    main()
