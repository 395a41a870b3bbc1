"""What answers keep of a needle's accuracy, and of their time, when keys are looked up. Rows in results/looked_up.jsonl.

    OMP_NUM_THREADS=1 python benchmarks/looked_up.py recall [--trained 256] [--steps 900] [--sequences 100]
    OMP_NUM_THREADS=1 python benchmarks/looked_up.py calibrate MODEL [--context 2000]
    OMP_NUM_THREADS=1 python benchmarks/looked_up.py decode [MODEL] [--contexts 8000,16000] [--rounds 3] [--plans "quest;recycled"]

recall     the model of recall_model.py, trained on the spot: pairs among filler are the prompt, then questions with their answers given, token
           by token; right is the most likely token after each question. Keys are those that all answer tokens met of those before them.
           Squeezed's thresholds are found by halving on other sequences, such that a third of the keys is met.
calibrate  Squeezed's threshold on a prompt of MODEL for several shares of keys
decode     CPU seconds a token of the whole model, with each plan and without, in one process: rounds of CYCLE tokens take turns, so that each has a
           Recycled's full token in it; the median round counts. Prompts are not read: LAID tokens are, and their keys and values fill the
           pages of any number of tokens, over and over; what a token costs depends on how many keys it meets, not on what they are
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from attend import tokens_of
from cache import ask_of
from cache_quality import interval
from lib.rows import append
from recall_model import HEADS, LAYERS, WIDTH, decoder_of, pairs_among_filler, train
from torch import Tensor

import ponder
from ponder.accelerate.attend.quest import Quest
from ponder.accelerate.attend.recycled import Recycled
from ponder.accelerate.attend.squeezed import Squeezed
from ponder.catalogue import attention_plan, open_model
from ponder.core.accelerations import Accelerations
from ponder.core.attention_plan import AttentionPlan
from ponder.engine.attend import Attention, Span
from ponder.engine.pages import PAGE, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.passes import WholePasses
from ponder.engine.planned import PlannedAttention
from ponder.engine.settings import Settings
from ponder.models.decoder import Decoder

ASKED = 4  # questions behind each prompt
CYCLE = 8  # tokens of a round: one of them meets everything under `recycled:every=8`
LAID = 2048  # tokens of a prompt that are read
PLANS = "quest:keep=1024;squeezed:threshold=0.4;recycled:keep=1024,every=8"


@torch.inference_mode()
def answered(decoder: Decoder, plan: AttentionPlan | None, tokens: Tensor) -> tuple[Tensor, float]:
    """Whether each question of each sequence was answered right, bool [n, ASKED], and the share of keys that answers met."""
    pool = Pool((LAYERS, HEADS, WIDTH), torch.float32, 1 << 25)
    attention = Attention(decoder.config, pool) if plan is None else PlannedAttention(decoder.config, pool, plan)
    num_prompt, found = tokens.shape[1] - 2 * ASKED, []
    for row in tokens:
        pages, right = Pages(pool), []
        assert pages.reserve(len(row))
        for start, stop in [(0, num_prompt), *((at, at + 1) for at in range(num_prompt, len(row) - 1))]:
            step = attention.plan([Span(pages, start, stop, num_prompt)])
            hidden_TD = decoder.forward(row[start:stop], step.positions, step.attend, step.prompts)
            pages.num_tokens = stop
            if start >= num_prompt and (start - num_prompt) % 2 == 0:
                right.append(bool(decoder.logits(hidden_TD[-1:]).argmax() == row[stop]))
        found.append(right)
        pages.release()
    met = attention.met.keys / attention.met.of if isinstance(attention, PlannedAttention) else 1.0
    return torch.tensor(found), met


def calibrated(share_of, plan: Squeezed, wanted: float, *, rounds: int = 9) -> Squeezed:
    """The plan with the threshold at which it meets `wanted` of the keys, by halving; share_of(plan) measures it."""
    low, high = 0.0, 8.0
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if share_of(replace(plan, threshold=middle)) > wanted else (low, middle)
    return replace(plan, threshold=round(high, 3))


def run_recall(args: argparse.Namespace) -> None:
    file, length = Path(f"out/recall-{args.trained}-{args.steps}-{args.seed}.pt"), args.trained
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        torch.save(train(args.trained, args.steps, args.seed), file)
    net, seconds = torch.load(file, weights_only=False)
    draw = torch.Generator().manual_seed(args.seed + 1000)
    others, _ = pairs_among_filler(16, length, draw, asked=ASKED)
    tokens, _ = pairs_among_filler(args.sequences, length, draw, asked=ASKED)
    decoder = decoder_of(net, length)

    def share_of(plan: AttentionPlan) -> float:
        return answered(decoder, plan, others)[1]

    third = length // 3 // 16 * 16
    plans = [
        None, calibrated(share_of, Squeezed(), 1 / 3), calibrated(share_of, Squeezed(coarse=0.02), 1 / 3), Quest(keep=third, dense_layers=0),
        Quest(keep=third // 2 // 16 * 16, dense_layers=0), Recycled(keep=third, every=2), Recycled(keep=third, every=8),
    ]  # fmt: skip
    for plan in plans:
        right, share = answered(decoder, plan, tokens)
        low, high = interval(int(right.sum()), right.numel())
        append("looked_up", {
            "what": "recall", "plan": "plain" if plan is None else f"{plan.name}:{settings(plan)}", "trained_len": args.trained, "steps": args.steps,
            "seed": args.seed, "n": right.numel(), "train_cpu_s": round(seconds, 1), "right": round(right.float().mean().item(), 4),
            "low": round(low, 4), "high": round(high, 4), "keys_met": round(share, 4),
        })  # fmt: skip


def settings(plan: AttentionPlan) -> str:
    return ",".join(f"{name}={value}" for name, value in vars(plan).items() if value != vars(type(plan)()).get(name))


class Laid:
    """A process whose pages hold a prompt of `num` tokens that nobody read."""

    def __init__(self, model: str, num: int) -> None:
        path = Path(model) if Path(model).exists() else ponder.pull(model)
        small = open_model(path, threads=1, settings=Settings(kv_bytes=1 << 16)).pool
        room = (num + 8 * CYCLE * 16) // PAGE * small.heads * small.page_nbytes
        self.process = open_model(path, threads=1, settings=Settings(kv_bytes=room))
        self.pages, self.num = Pages(self.process.pool), num // PAGE * PAGE
        assert self.pages.reserve(self.num)
        some = min(LAID, self.num)
        with torch.inference_mode():
            self.process._forward([Span(self.pages, 0, some, some)], tokens_of(self.process, some))
        pool, all_pages = self.process.pool, torch.from_numpy(self.pages.table[:, :, : self.num // PAGE].astype(np.int64)).flatten(0, 1)
        for start in range(some // PAGE, self.num // PAGE, some // PAGE):
            more = all_pages[:, start : start + some // PAGE]
            pool.copy(all_pages[:, : more.shape[1]].reshape(-1).numpy(), more.reshape(-1).numpy())
        self.pages.num_tokens = self.num

    def attention(self, plan: AttentionPlan | None) -> Attention:
        config, pool = self.process.decoder.config, self.process.pool
        return Attention(config, pool) if plan is None else PlannedAttention(config, pool, plan)

    @torch.inference_mode()
    def write(self, pages: Pages, attention: Attention, num: int) -> float:
        """CPU seconds a token of the next `num`, any tokens."""
        decoder, start = self.process.decoder, time.process_time()
        for _ in range(num):
            at = pages.num_tokens
            assert pages.reserve(at + 1)
            span = Span(pages, at, at + 1, self.num, at=(min(at, decoder.config.context_len - 1),))  # as far as there are angles
            hidden_TD = WholePasses(decoder, attention).run([span], [100 + at % 100])
            decoder.logits(hidden_TD)
            pages.num_tokens = at + 1
        return (time.process_time() - start) / num


def run_decode(args: argparse.Namespace) -> None:
    for context in map(int, args.contexts.split(",")):
        laid, runs = Laid(args.model, context), {}
        for spec in [None, *(args.plans or PLANS).split(";")]:
            attention, pages = laid.attention(attention_plan(spec) if spec else None), laid.pages.branch()
            first = laid.write(pages, attention, 1)
            laid.write(pages, attention, CYCLE - 1)
            runs[spec] = attention, pages, list[float](), first
        for _ in range(args.rounds):
            for attention, pages, times, _ in runs.values():
                times.append(laid.write(pages, attention, CYCLE))
        plain = statistics.median(runs[None][2])
        for spec, (attention, _, times, first) in runs.items():
            planned = attention if isinstance(attention, PlannedAttention) else None
            append("looked_up", {
                "what": "decode", "plan": spec or "plain", "model": Path(args.model).stem, "tokens": laid.num, "n": CYCLE * args.rounds,
                "ms_per_token": round(1000 * statistics.median(times), 2), "gain": round(plain / statistics.median(times), 3),
                "first_token_s": round(first, 2), "keys_met": round(planned.met.keys / planned.met.of, 4) if planned else 1.0,
                "memory_mb": round(planned.memories.nbytes / 1e6, 2) if planned else 0.0, "kv_mb": round(laid.process.pool.nbytes / 1e6, 1),
            })  # fmt: skip


def run_calibrate(args: argparse.Namespace) -> None:
    path = ponder.pull(args.model)
    process = open_model(path, threads=1, accelerations=Accelerations(attend="squeezed"))
    ask = ask_of(process, args.context, 4)
    process.add(ask)
    while process.jobs:
        process.step()

    def share_of(plan: Squeezed) -> float:
        process.attention.planned = plan
        process.attention.met.keys = process.attention.met.of = 0
        process.add(ask)
        while process.jobs:
            process.step()
        return process.attention.met.keys / process.attention.met.of

    for wanted in (0.5, 1 / 3, 0.2, 0.1):
        plan = calibrated(share_of, attention_plan(args.plans or "squeezed"), wanted, rounds=7)
        append("looked_up", {
            "what": "calibrate", "model": args.model, "tokens": process.prompt_len(ask.prefix.prompt), "wanted": round(wanted, 3),
            "threshold": plan.threshold, "clusters": plan.clusters, "keys_met": round(share_of(plan), 4),
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recall", "calibrate", "decode"))
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    for name, default in (("trained", 256), ("steps", 900), ("sequences", 100), ("seed", 0), ("context", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--contexts", default="8000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plans", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"recall": run_recall, "calibrate": run_calibrate, "decode": run_decode}[args.what](args)


if __name__ == "__main__":
    main()
