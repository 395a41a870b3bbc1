"""SpecDec++ beside every fixed length, for a model and a smaller one that drafts for it: recorded, trained, and measured on other questions.

    python benchmarks/length_pair.py --model qwen2.5-coder-1.5b --drafter "draft_model:model=qwen2.5-coder-0.5b,weights=native,least=0,num=12" \
      --out out/pair --threads 8 --minutes 4
    python benchmarks/length_pair.py ... --tiny

1. Costs of one sequence by itself: a pass of the target by its rows, and a pass of the drafter (medians of rounds of some answers).
2. Rounds of fixed drafts on --train questions of each task, all at once: what is accepted does not depend on the crowd. The head is fitted to
   them, and its threshold is the cheapest on those rounds by the costs of 1.
3. Other questions of the same tasks under every setting, all at once: rounds, drafted, accepted of every answer. Their cost without a clock:
   passes of each model times what such a pass costs by 1. Intervals draw questions anew; the best fixed length is chosen on the same questions.
4. While there is time, the best settings one answer at a time, taking turns, by the clock.

Rows go to results/length_pair.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lib.rows import append
from speculation.ours import Blind

import ponder
from ponder import catalogue
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.length.accept_head import save_accept_head
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.specdecpp import SpecDecPP
from ponder.accelerate.length.threshold import Threshold
from ponder.cli.verbs import questions_of
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt
from ponder.core.draft import Controlling, Drafting, Guess, LengthControl, Speculation, Spent, StepCosts, Tree, Verified
from ponder.core.guarantee import Guarantee
from ponder.engine.process import LocalProcess
from ponder.engine.rounds import Rounds
from ponder.train.accept_head import AcceptRecipe, Judged, Recorder, fit_accept_head

FIXED = (1, 2, 3, 4, 6)
THRESHOLDS = tuple(n / 20 for n in range(1, 20))
WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13)


@dataclass
class Account:
    """Of one answer. widths: drafted tokens of every round; passes: of the drafter, also for guesses that a control then left out."""

    widths: list[int] = field(default_factory=list)
    passes: int = 0
    accepted: int = 0

    def cost(self, costs: "Costs") -> float:
        """Seconds that it would have taken by itself."""
        return sum(costs.target(1 + width) for width in self.widths) + costs.draft * self.passes

    @property
    def tokens(self) -> int:
        return self.accepted + len(self.widths)


@dataclass(frozen=True)
class Costs:
    """Seconds, of one sequence by itself: a pass of the target by its rows, a pass of the drafter."""

    seconds: tuple[tuple[int, float], ...]
    draft: float

    def target(self, num_rows: int) -> float:
        return StepCosts(seconds=self.seconds).of(num_rows)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A length control that also counts, answer by answer, and keeps what rounds took."""

    inner: LengthControl
    accounts: dict[int, Account] = field(default_factory=dict)
    spent: list[Spent] = field(default_factory=list)

    guarantee = Guarantee.EXACT

    def open(self, costs: Callable[[], StepCosts]) -> "Counting":
        return Counting(self, self.inner.open(costs))


@dataclass
class Counting:
    settings: Counted
    inner: Controlling
    made: dict[int, int] = field(default_factory=dict)  # guesses of every request in this step

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return self.inner.rooms(requests)

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        goes = self.inner.goes_on(requests, drafts)
        self.made |= {request: len(draft) + is_on for request, draft, is_on in zip(requests, drafts, goes)}
        return goes

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return self.inner.cut(requests, trees, num_rows)

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        for seen in verified:
            account = self.settings.accounts.setdefault(seen.request, Account())
            if account.widths or len(seen.tree) or seen.tokens:
                account.widths.append(len(seen.tree))
                account.passes += max(len(seen.tree), self.made.pop(seen.request, 0))
                account.accepted += len(seen.path)
        if spent is not None:
            self.settings.spent.append(spent)
        self.inner.learn(verified, spent)

    def forget(self, request: int) -> None:
        self.inner.forget(request)


class Pair:
    """A process whose drafter is opened once, under one length control after another."""

    def __init__(self, args: argparse.Namespace) -> None:
        path = Path(args.model) if Path(args.model).exists() else ponder.pull(args.model)
        self.process: LocalProcess = catalogue.open_model(path, args.weights, threads=args.threads)
        self.drafter = catalogue.speculation(args.drafter).drafter
        self.drafting: Drafting | None = None

    def use(self, control: LengthControl | None) -> None:
        before = self.process.rounds
        speculation = None if control is None else Speculation(drafter=Lent(self), acceptor=Coupled(), control=control)
        self.process.rounds = Rounds(speculation, before.host, before.take, before.ahead, max_rows=before.max_rows, meter=before.meter)

    def answer(self, prompts: Sequence[Prompt]) -> tuple[list[tuple[int, ...]], float]:
        """Greedy answers, all at once, and seconds after every prompt was read."""
        tickets = [self.process.add(Extend(prefix=Prefix(prompt), seed=i, sampling=GREEDY)) for i, prompt in enumerate(prompts)]
        done: dict[int, tuple[int, ...]] = {}
        start = 0.0
        while len(done) < len(tickets):
            done |= {ticket: answer.prefix.tokens for ticket, answer in self.process.step()}  # type: ignore[union-attr]
            made = {t: p.generated_tokens for t, p in self.process.progress().items()}
            if not start and all(t in done or made.get(t) for t in tickets):
                start = time.perf_counter()
        return [done[t] for t in tickets], time.perf_counter() - start


@dataclass(frozen=True)
class Lent:
    """The drafter of a pair, whose model is not opened again."""

    pair: Pair

    guarantee = Guarantee.EXACT

    @property
    def scope(self) -> str:
        return self.pair.drafter.scope

    @property
    def needs(self) -> object:
        return self.pair.drafter.needs

    def open(self, host: object) -> Drafting:
        """What it asks of the control it asks of the one that is used now."""
        pair = self.pair
        if pair.drafting is None:
            now = replace(host, goes_on=lambda *asked: pair.process.rounds.controlling.goes_on(*asked))  # type: ignore[type-var]
            pair.drafting = pair.drafter.open(now)
        return pair.drafting


def prompts_of(args: argparse.Namespace) -> tuple[list[Prompt], list[Prompt]]:
    """(to train on, to measure on), other questions of the same tasks."""
    train, unseen = [], []
    for name in args.tasks.split(","):
        found = [replace(q.prompt, max_tokens=args.new, form=None) for q in questions_of(catalogue.task(name), "dev", args.train + args.num)]
        train, unseen = train + found[: args.train], unseen + found[args.train :]
    return train, unseen


def costs_of(pair: Pair, prompts: Sequence[Prompt]) -> Costs:
    """Medians over rounds of one answer at a time."""
    found = []
    for width in WIDTHS:
        counted = Counted(inner=Fixed(num=width - 1))
        before = pair.process.rounds
        blind = Speculation(drafter=Blind(num=max(1, width - 1)), acceptor=Coupled(), control=counted)
        pair.process.rounds = Rounds(blind, before.host, before.take, before.ahead, max_rows=before.max_rows, meter=before.meter)
        for prompt in prompts:
            pair.answer([replace(prompt, max_tokens=width + 12)])
        took = [s.seconds for s in counted.spent if s.num_rows == width]
        if took:
            found.append((width, statistics.median(took)))
    rising = tuple((width, max(s for w, s in found if w <= width)) for width, _ in found)
    counted = Counted(inner=Fixed(num=4))
    pair.use(counted)
    for prompt in prompts:
        pair.answer([replace(prompt, max_tokens=32)])
    return Costs(rising, statistics.median(s.draft_seconds / s.num_drafted for s in counted.spent if s.num_drafted))


def threshold_of(rounds: Sequence[Judged], head: object, costs: Costs) -> tuple[float, dict[float, float]]:
    """The threshold that is cheapest on those rounds, and seconds a token of each."""
    reaches = []
    for judged in rounds:
        drafts = [judged.guesses[: i + 1] for i in range(len(judged.guesses))]
        reaches.append(torch.tensor(head.chances(drafts)).cumprod(0))  # type: ignore[attr-defined]
    found = {}
    for stop in THRESHOLDS:
        seconds = tokens = 0.0
        for judged, reach in zip(rounds, reaches):
            num = min(len(judged.guesses), 1 + int((1 - reach <= stop).sum()))
            seconds += costs.target(1 + num) + costs.draft * num
            tokens += 1 + min(num, judged.num_accepted)
        found[stop] = seconds / tokens
    return min(found, key=lambda stop: found[stop]), found


def measured(pair: Pair, prompts: Sequence[Prompt], settings: dict[str, LengthControl]) -> dict[str, list[Account]]:
    """Accounts of every answer, in the order of the prompts, all answered at once."""
    found, plain = {}, None
    for name, control in settings.items():
        counted = Counted(inner=control)
        pair.use(counted)
        said, seconds = pair.answer(prompts)
        found[name] = [counted.accounts[request] for request in sorted(counted.accounts)]
        plain = plain or said
        rounds, drafted, accepted = (sum(f(a) for a in found[name]) for f in (lambda a: len(a.widths), lambda a: sum(a.widths), lambda a: a.accepted))
        print(
            f"{name}: {rounds} rounds, {drafted / rounds:.2f} drafted, {accepted / rounds:.2f} accepted; {seconds:.1f} s, same {said == plain}",
            flush=True,
        )
    return found


def cost_a_token(accounts: Sequence[Account], costs: Costs, picks: Sequence[int]) -> float:
    return sum(accounts[i].cost(costs) for i in picks) / sum(accounts[i].tokens for i in picks)


def gain(better: Sequence[Account], other: Sequence[Account], costs: Costs) -> tuple[float, list[float]]:
    """other's cost a token over better's, with 95 % of a thousand draws of questions."""
    every = range(len(better))
    draws = torch.randint(len(better), (1000, len(better)), generator=torch.Generator().manual_seed(0)).tolist()
    ratios = sorted(cost_a_token(other, costs, picks) / cost_a_token(better, costs, picks) for picks in draws)
    return cost_a_token(other, costs, every) / cost_a_token(better, costs, every), [round(ratios[25], 4), round(ratios[974], 4)]


def in_turns(pair: Pair, prompts: Sequence[Prompt], settings: dict[str, LengthControl | None], until: float) -> dict[str, dict[str, float]]:
    """Seconds a token of one answer at a time, setting after setting on every prompt, while there is time."""
    seconds, tokens = dict.fromkeys(settings, 0.0), dict.fromkeys(settings, 0)
    for prompt in prompts:
        if time.monotonic() > until:
            break
        for name, control in settings.items():
            pair.use(control)
            said, took = pair.answer([prompt])
            seconds[name] += took
            tokens[name] += max(0, len(said[0]) - 1)
    return {name: {"ms_a_token": round(1e3 * seconds[name] / max(1, tokens[name]), 3), "tokens": tokens[name]} for name in settings}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b", help="a name, or a path")
    parser.add_argument("--drafter", default="draft_model:model=qwen2.5-coder-0.5b,weights=native,least=0,num=12")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--tasks", default="mbpp,gsm8k")
    parser.add_argument("--train", type=int, default=24, help="questions of each task to train on")
    parser.add_argument("--num", type=int, default=12, help="questions of each task to measure on")
    parser.add_argument("--new", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--recorded", type=int, default=10, help="tokens of every recorded draft")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0, help="no new answer by the clock after this long")
    parser.add_argument("--out", type=Path, default=Path("out/pair"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.train, args.num, args.new, args.recorded = 6, 2, 16, 4
    return args


def main() -> None:
    args = arguments()
    until = time.monotonic() + 60 * args.minutes
    train, unseen = prompts_of(args)
    pair = Pair(args)
    costs = costs_of(pair, unseen[:: max(1, len(unseen) // 3)][:3])
    one = costs.target(1)
    shown = {"c": round(costs.draft / one, 4), "target_ms": round(1e3 * one, 2), "widths": {str(w): round(s / one, 3) for w, s in costs.seconds}}
    same = {"model": args.model, "drafter": args.drafter, "weights": args.weights, "threads": args.threads, "tasks": args.tasks, "new": args.new}
    append("length_pair", {"what": "costs"} | shown | same)
    recorder = Recorder(num=args.recorded)
    pair.use(recorder)
    pair.answer(train)
    head = fit_accept_head(recorder.judged, drafter=f"{args.drafter} of {args.model}", recipe=AcceptRecipe(num=args.recorded))
    stop, by_threshold = threshold_of(recorder.judged, head, costs)
    save_accept_head(replace(head, facts=head.facts | {"stop_above": stop, "draft_cost": shown["c"]}), args.out / "accept.safetensors")
    shares = {str(k): round(v / one, 4) for k, v in by_threshold.items()}
    append("length_pair", {"what": "head", "stop_above": stop, "cost_by_threshold": shares} | head.facts | same)
    settings: dict[str, LengthControl] = {f"fixed {n}": Fixed(num=n) for n in FIXED}
    settings |= {f"threshold {least}": Threshold(least=least, num=12) for least in (0.4, 0.6)}
    settings |= {"specdecpp": SpecDecPP(head=head, stop_above=stop, num=12)}
    accounts = measured(pair, unseen, settings)
    every = range(len(unseen))
    by_cost = {name: cost_a_token(found, costs, every) for name, found in accounts.items()}
    best = min((name for name in by_cost if name.startswith("fixed")), key=lambda name: by_cost[name])
    ratio, interval = gain(accounts["specdecpp"], accounts[best], costs)
    append("length_pair", {
        "what": "cost", "n": len(unseen), "best_fixed": best, "specdecpp_over_best_fixed": round(ratio, 4), "interval": interval, "stop_above": stop,
        "speed_up": {name: round(one / cost, 4) for name, cost in by_cost.items()},
        "accepted_a_round": {name: round(sum(a.accepted for a in f) / sum(len(a.widths) for a in f), 3) for name, f in accounts.items()},
        "drafted_a_round": {name: round(sum(sum(a.widths) for a in f) / sum(len(a.widths) for a in f), 3) for name, f in accounts.items()},
    } | shown | same)  # fmt: skip
    near = sorted((name for name in by_cost if name.startswith("fixed")), key=lambda name: by_cost[name])[:2]
    clocked: dict[str, LengthControl | None] = {"plain": None} | {name: settings[name] for name in (*near, "specdecpp")}
    append("length_pair", {"what": "clock", "ms": in_turns(pair, unseen, clocked, until)} | same)


if __name__ == "__main__":
    main()
