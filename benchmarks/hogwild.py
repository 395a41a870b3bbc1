"""Workers that read each other beside workers that do not: what a step costs, and, where a task is named, how often the answer is right.

`python benchmarks/hogwild.py [--model NAME] [--workers 1 2 4] [--new 64] [--context 256] [--threads 1]` writes rows of speed: tokens per second of
W workers alone, in each layout, and with keys re-rotated and joined side by side at every step (the obvious method) instead of queries turned.
`--facts 8` asks whether a worker reads what another writes: one says a number, and later the other does; nats a digit that this costs the other.
`--task gsm8k --n 40 --minutes 4` adds rows of quality: sample, self_consistency and hogwild on the same questions, as many as the minutes allow.
Rows go to benchmarks/results/hogwild.jsonl; seconds are CPU seconds of the process over its threads.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from lib.rows import append
from torch import Tensor

import ponder
from ponder import catalogue
from ponder.catalogue import SCHEDULERS, formats_of
from ponder.cli.verbs import questions_of
from ponder.core.asks import Ask, Confer, Extend, Extension, Prefix, Prompt, Sampling
from ponder.core.beside import LAYOUTS
from ponder.core.budget import Budget
from ponder.engine.attend import Span, StepPlan, attend_group
from ponder.engine.beside import BesideAttention, BesideStep
from ponder.engine.conferring_process import ConferringProcess
from ponder.engine.open import open_process
from ponder.engine.settings import Settings
from ponder.models.rotary import frequencies, rotary_kind, turned
from ponder.run.driver import ask as answered
from ponder.testing.run import answer_turn

FILLER = "We add the first two numbers, then the third, and look whether the sum is even.\n\n"


class Joined(BesideStep):
    """Meets a token's stretches as one: their keys are copied side by side, rotated to where they stand in its view."""

    def _read(self, layer: int, q_NHE: Tensor) -> Tensor:
        frequency, outs = frequencies(self.config, rotary_kind(self.config, layer)), []
        for n, stretches in enumerate(self.met):
            keys, values = [], []
            for s in stretches:
                slots = s.sequence.slots(layer, s.start, s.stop)  # [n, K]
                k, v = (self.pool.rows(which, slots.reshape(-1)).unflatten(0, slots.shape) for which in (0, 1))
                keys.append(turned(k, frequency, torch.full((len(k),), -s.turn)))
                values.append(v)
            k_BKCE, v_BKCE = (torch.cat(x).transpose(0, 1)[None] for x in (keys, values))
            q_BKGE = q_NHE[n].unflatten(0, (k_BKCE.shape[1], -1))[None]
            outs.append(attend_group(q_BKGE, k_BKCE, v_BKCE, q_BKGE.new_zeros(1, 1, q_BKGE.shape[2], k_BKCE.shape[2])).flatten())
        return torch.stack(outs)


class JoinedAttention(BesideAttention):
    def plan(self, spans: Sequence[Span]) -> StepPlan:
        return Joined(self, spans) if any(span.met for span in spans) else super().plan(spans)


class JoinedProcess(ConferringProcess):
    def _open_attention(self, settings: Settings) -> BesideAttention:
        return JoinedAttention(self.decoder.config, self.pool, is_native=settings.is_native, is_shared=settings.is_shared)


def timed(process: ConferringProcess, asks: Sequence[Ask], num: int) -> tuple[float, float]:
    """CPU and wall seconds of `num` steps in which all draw, after the prompts are read."""
    for ask in asks:
        process.add(ask)
    while min(p.generated_tokens for p in process.progress().values()) < 2:
        process.step()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(num):
        process.step()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    for ticket in list(process.jobs):
        process.cancel(ticket)
    return spent


def speed(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    matrices, head, dtype = formats_of("native", "cpu")
    process = open_process(ponder.pull(args.model), weights=matrices, head=head, dtype=dtype, scheduler=SCHEDULERS["sarathi"])
    assert isinstance(process, ConferringProcess)
    joined = JoinedProcess(process.decoder, process.tokenizer, process.scheduler)
    text = FILLER * max(1, args.context // 22)
    quiet = Sampling(logit_bias=tuple((eos, -100.0) for eos in process.tokenizer.eos_ids))
    for num in args.workers:
        parts = tuple(
            Extend(prefix=Prefix(Prompt(messages=(("user", text),), prefill=f"I am worker {i}. ", max_tokens=4096)), seed=i, sampling=quiet)
            for i in range(num)
        )
        ways: dict[str, tuple[ConferringProcess, Sequence[Ask]]] = {"alone": (process, parts)}
        if num > 1:
            ways |= {layout: (process, [Confer(asks=parts, layout=layout)]) for layout in LAYOUTS}
            ways["contiguous, joined"] = (joined, [Confer(asks=parts)])
        for way, (one, asks) in ways.items():
            cpu, wall = timed(one, asks, args.new)
            rounded = {"ms_a_step": round(1000 * cpu / args.new, 2), "wall_ms_a_step": round(1000 * wall / args.new, 2)}
            row = {
                "kind": "speed",
                "model": args.model,
                "workers": num,
                "way": way,
                "new": args.new,
                "prompt": process.prompt_len(parts[0].prefix.prompt),
            }
            append("hogwild", row | rounded | {"tokens_a_second": round(num * args.new / cpu, 1), "threads": args.threads})


def facts(args: argparse.Namespace) -> None:
    """What both write is given. The second says the number 12 tokens or so after the first has."""
    torch.set_num_threads(args.threads)
    process = catalogue.open_model(ponder.pull(args.model), threads=args.threads)
    tokens = process.tokenizer.encode
    nats: dict[str, list[float]] = {way: [] for way in ("alone", *LAYOUTS)}
    for number in range(args.facts):
        code = str(7919 * (number + 13) % 9000 + 1000)
        prompt = Prompt(messages=(("user", "Find out the code of the safe. Two of you work on it."),), max_tokens=200)
        texts = (
            f"I have found it: the code of the safe is {code}.\n\n",
            "I look at the safe and think about what its door is made of.\n\nThe code of the safe is ",
        )
        given = [tuple(tokens(text)) for text in texts]
        given[1] += tuple(tokens(code))
        parts = tuple(
            Extend(prefix=Prefix(replace(prompt, prefill=f"I am {name}. ")), seed=0, forced=text, max_tokens=len(text), logprobs=0)
            for name, text in zip(("Alice", "Bob"), given)
        )
        for way in nats:
            asks: list[Ask] = [parts[1]] if way == "alone" else [Confer(asks=parts, layout=way)]
            (told,) = answer_turn(asks, process)
            spoken = told.logprobs if isinstance(told, Extension) else told.extensions[1].logprobs  # type: ignore[union-attr]
            digits = spoken[-len(tokens(code)) :]
            nats[way].append(-sum(token.log_p for token in digits) / len(digits))
    for way, found in nats.items():
        row = {"kind": "facts", "model": args.model, "way": way, "n": len(found), "threads": args.threads}
        append("hogwild", row | {"nats_a_digit": round(statistics.mean(found), 3), "all": [round(x, 2) for x in found]})


def quality(args: argparse.Namespace) -> None:
    process = catalogue.open_model(ponder.pull(args.model), threads=args.threads)
    questions = questions_of(catalogue.task(args.task), "test", args.n)
    ends = time.perf_counter() + 60 * args.minutes
    ways = ("sample", "self_consistency:num=2", *(f"hogwild:num=2,layout={layout}" for layout in LAYOUTS), "hogwild:num=2,enough=none")
    right = {way: [0, 0, 0, 0] for way in ways}  # right, asked, tokens, steps
    for number, question in enumerate(questions):
        if time.perf_counter() > ends:
            break
        for way in ways:
            result = answered(process, question.prompt, catalogue.strategy(way), Budget(), seed=number)
            is_right = bool(result.candidates) and question.is_right(result.candidates[0].text)
            longest = max(len(c.tokens) for c in result.candidates)
            right[way] = [a + b for a, b in zip(right[way], (int(is_right), 1, result.cost.generated_tokens, longest))]
    for way, (good, num, tokens, steps) in right.items():
        row = {"kind": "quality", "task": args.task, "model": args.model, "way": way, "right": good, "n": num, "threads": args.threads}
        append("hogwild", row | {"tokens_a_question": round(tokens / max(1, num), 1), "steps_a_question": round(steps / max(1, num), 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--new", type=int, default=64, help="steps that are timed")
    parser.add_argument("--context", type=int, default=256, help="tokens of the prompt, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--facts", type=int, default=0)
    parser.add_argument("--task")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=4.0)
    args = parser.parse_args()
    if args.facts:
        facts(args)
    elif args.task:
        quality(args)
    else:
        speed(args)


if __name__ == "__main__":
    main()
