"""A tail for SmolLM2-135M (docs/cache.md, "Trained shortcuts for prompts"): text of the model's own, training, and what it cost and gained.

    python benchmarks/tail.py text --out text.pt
    python benchmarks/tail.py train --text text.pt --start 0.5 --seconds 260 --out half.tail
    python benchmarks/tail.py prefill --tokens 4096 --tail half.tail

One thread; seconds are CPU seconds. `train` prints divergence and agreement on texts that were not trained on, before and after.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from lib.first_token import first_token
from lib.rows import append

from ponder import catalogue
from ponder.accelerate.weights.dense import Float32, PlainLinear, stack_rows
from ponder.cli.verbs import questions_of
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Extension, Prefix, Prompt, Sampling
from ponder.core.formats import RawTensor
from ponder.core.rng import hash_seed
from ponder.core.tail import load_tail, save_tail
from ponder.models.decoder import load
from ponder.models.fetch import pull
from ponder.models.tokenizer import open_model
from ponder.train.tail import TailRecipe, fit_tail, measured

MODEL = "smollm2-135m"
TASKS = {"gsm8k": 40, "sciq": 50, "mbpp": 30, "math500": 20}  # dev questions that texts begin with
LENGTH, HELD_OUT = 256, 16  # tokens of a text; texts that only measure


class Half(Float32):
    """Plain bfloat16 matrices, through which gradients pass."""

    def pack(self, parts: tuple[RawTensor, ...]) -> PlainLinear:
        return PlainLinear(stack_rows(parts, torch.bfloat16))


def write(out: Path) -> None:
    """Answers to questions, and texts that go on from a few words of them, all drawn from the model."""
    process = catalogue.open_model(pull(MODEL), threads=1)
    questions = [q.prompt.question for task, n in TASKS.items() for q in questions_of(catalogue.task(task), "dev", n)]
    prompts = [Prompt(messages=(("user", text),), max_tokens=224) for text in questions]
    for i, words in enumerate(text.split() for text in questions):
        for k in range(2):
            start = random.Random(7 * i + k).randrange(max(1, len(words) - 8))
            prompts.append(Prompt(messages=(("raw", " ".join(words[start : start + 8])),), max_tokens=300))
    draws = Sampling(temperature=0.8)
    tickets = {process.add(Extend(prefix=Prefix(p), seed=hash_seed("text", i), sampling=draws)): p for i, p in enumerate(prompts)}
    texts = []
    while tickets:
        for ticket, answer in process.step():
            prompt = tickets.pop(ticket)
            assert isinstance(answer, Extension)
            texts.append([*process.tokenizer.render(prompt.messages), *answer.prefix.tokens])
    torch.save(texts, out)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens")


def pieces(path: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Stretches of LENGTH tokens: to train on, and to measure on, the latter of texts that the former know nothing of."""
    texts = torch.load(path)
    random.Random(0).shuffle(texts)
    stream = [token for text in texts for token in text]
    cut = [stream[i : i + LENGTH] for i in range(0, len(stream) - LENGTH, LENGTH)]
    return cut[HELD_OUT + 1 :], cut[:HELD_OUT]  # the piece between may share a text with both


def train(text: Path, start: float, share: int, seconds: float, rate: float, out: Path) -> None:
    checkpoint, _ = open_model(pull(MODEL))
    decoder = load(checkpoint, Half(), None, torch.float32)
    learned, held_out = pieces(text)
    tail = catalogue.tail_kind(f"swiftkv:start={start},share={share}").of(checkpoint)
    recipe = TailRecipe(length=LENGTH, rate=rate, max_seconds=seconds, max_steps=10_000, is_half=True)
    before = measured(decoder, tail, held_out, recipe)
    print(f"start {tail.start} of {decoder.config.num_layers}, share {share}: {len(learned)} pieces; before {before}", flush=True)
    tail = fit_tail(decoder, tail, learned, recipe, on_step=lambda i, loss: print(i, round(loss, 3), flush=True) if i % 10 == 0 else None)
    after = measured(decoder, tail, held_out, recipe)
    tail.facts.update(before=before, after=after)
    save_tail(tail, out)
    append("tail", {"what": "train", "model": MODEL, "start": tail.start, "share": share, "held_out": HELD_OUT * LENGTH} | tail.facts)
    print(json.dumps(tail.facts))


def prefill(num: int, tails: list[Path], repeats: int) -> None:
    """CPU seconds to the first token of a prompt of `num` tokens, the best of some, with and without tails."""
    draws = torch.Generator().manual_seed(0)
    for path in (None, *tails):
        process = catalogue.open_model(pull(MODEL), threads=1, accelerations=Accelerations(tail=None if path is None else str(path)))
        found = [first_token(process, num, draws) for _ in range(repeats)]
        tail = None if path is None else load_tail(path)
        row = {"what": "prefill", "model": MODEL, "tokens": num, "start": tail and tail.start, "share": tail and tail.share}
        append("tail", row | {"seconds": min(x for x, _ in found), "flops": found[0][1], "nbytes": process.nbytes, "n": repeats})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "train", "prefill"))
    parser.add_argument("--text", type=Path, default=Path("text.pt"))
    parser.add_argument("--out", type=Path, default=Path("out.tail"))
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tail", type=Path, action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "text":
        write(args.out)
    elif args.what == "train":
        train(args.text, args.start, args.share, args.seconds, args.rate, args.out)
    else:
        prefill(args.tokens, args.tail, args.repeats)


if __name__ == "__main__":
    main()
