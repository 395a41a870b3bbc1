"""Laws of searches over steps, run on a toy process whose trees are small enough to know whole."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ponder.core.asks import Candidate, Extend, Outcome, Prefix, Prompt
from ponder.core.rng import TorchRng, hash_seed
from ponder.core.roles import Strategy
from ponder.testing.exact import TOLERANCE, require
from ponder.testing.run import Finished, answer_all, answer_crowd
from ponder.testing.toy import ToyLM, ToyProcess
from ponder.testing.verifiers import Lookup

LM = ToyLM("ab", ((0.45, 0.4, 0.15), (0.3, 0.5, 0.2), (0.5, 0.3, 0.2)))
DEEP = Prompt(messages=(("raw", "q"),), max_tokens=8)  # trees of some dozen nodes
SMALL = Prompt(messages=(("raw", "q"),), max_tokens=3)  # 15 answers


def searched(strategy: Strategy, prompt: Prompt = DEEP, *, key: int = 0, spent_after: int | None = None) -> Finished[Outcome]:
    return answer_all(strategy.run(prompt, TorchRng(key)), ToyProcess(LM), spent_after=spent_after)


def extends(done: Finished[Outcome]) -> list[list[Extend]]:
    """The Extend asks of each turn that has any."""
    turns = [[ask for ask in turn.asks if isinstance(ask, Extend)] for turn in done.turns]
    return [asks for asks in turns if asks]


def standing_of(first: Candidate) -> tuple[bool, bool, float]:
    """Whole before cut off, judged before not judged, then the verdict."""
    is_whole = first.finish in ("stop", "length")
    return is_whole, first.score is not None, first.score or 0.0


def law_same_tree_in_company(strategy: Strategy) -> None:
    """32 runs at once, their asks answered in any order, give each the turns and the outcome that it has alone."""
    prompts = (DEEP, SMALL)
    alone = [searched(strategy, prompts[key % 2], key=key) for key in range(32)]
    crowd = [strategy.run(prompts[key % 2], TorchRng(key)) for key in range(32)]
    for key, (result, turns) in enumerate(answer_crowd(crowd, lambda: ToyProcess(LM), random.Random(0))):
        require(turns == alone[key].turns, f"run {key} asks otherwise in company")
        require(result == alone[key].result, f"run {key} ends otherwise in company")


def law_best_never_gets_worse(strategy: Strategy) -> None:
    """For one seed, a larger budget gives an answer that stands no lower: whole, judged, with a larger verdict."""
    for key in range(2):
        num_turns = len(searched(strategy, key=key).turns)
        firsts = [searched(strategy, key=key, spent_after=k).result.candidates[0] for k in range(num_turns + 1)]
        for k, (less, more) in enumerate(itertools.pairwise(firsts)):
            require(standing_of(less) <= standing_of(more), f"seed {key}: {less} with {k} turns, {more} with one more")


def law_returns_the_best_it_met(strategy: Strategy) -> None:
    """The first candidate has the largest verdict among all whole answers that were judged on the way."""
    for key in range(4):
        done = searched(strategy, key=key)
        shown = [c for turn in done.turns for c in turn.best] + list(done.result.candidates)
        best = max(standing_of(c) for c in shown)
        require(standing_of(done.result.candidates[0]) == best, f"seed {key}: returned {done.result.candidates[0]}, had met {best}")


def law_one_ending(strategy: Strategy) -> None:
    """Every run ends with a whole answer when nothing limits it but itself."""
    for key in range(8):
        first = searched(strategy, key=key).result.candidates[0]
        require(first.finish in ("stop", "length"), f"seed {key}: ends with {first}")


LAWS: tuple[Callable[[Strategy], None], ...] = (
    law_same_tree_in_company,
    law_best_never_gets_worse,
    law_returns_the_best_it_met,
    law_one_ending,
)


# ---- trees that are known whole


@dataclass(frozen=True)
class Known:
    """Every prefix of SMALL with a value: of answers at random, of others at random too or the best that can still come."""

    values: dict[tuple[int, ...], float]
    answers: tuple[tuple[int, ...], ...]

    @property
    def verifier(self) -> Lookup:
        return Lookup(self.values)

    @property
    def best(self) -> tuple[int, ...]:
        return max(self.answers, key=lambda tokens: self.values[tokens])


def grown_all(prefix: Prefix) -> Iterator[Prefix]:
    """Every proper continuation of `prefix`."""
    for token in range(LM.end + 1) if not prefix.is_final else ():
        child = LM.grown(prefix, token)
        yield child
        yield from grown_all(child)


def known(seed: int, *, is_oracle: bool = False, is_falling: bool = False) -> Known:
    """is_oracle: a prefix has the best value that can still come. is_falling: no more than the prefix before it."""
    everything = list(grown_all(Prefix(SMALL)))
    chance = {p.tokens: hash_seed("value", seed, p.tokens) / 2**63 for p in everything}
    answers = tuple(p.tokens for p in everything if p.is_final)
    if is_oracle:
        chance = {p.tokens: max(chance[a] for a in answers if a[: len(p.tokens)] == p.tokens) for p in everything}
    if is_falling:
        chance = {p.tokens: min(chance[p.tokens[:i]] for i in range(1, len(p.tokens) + 1)) for p in everything}
    return Known(chance, answers)


def law_finds_the_best(make: Callable[[Lookup], Strategy]) -> None:
    """With the exact value of every prefix and enough children, the best of all answers is found."""
    for seed in range(6):
        tree = known(seed, is_oracle=True)
        found = searched(make(tree.verifier), SMALL, key=seed).result.candidates[0]
        require(found.tokens == tree.best, f"seed {seed}: found {found.text!r} of value {found.score}, the best has {tree.values[tree.best]}")


def law_expands_no_more_than(make: Callable[[Lookup], Strategy], other: Callable[[Lookup], Strategy]) -> None:
    """With the exact value of every prefix, it expands no more nodes than the other until it has found the best."""
    for seed in range(12):
        tree = known(seed, is_oracle=True)
        mine, theirs = (searched(m(tree.verifier), SMALL, key=seed).result for m in (make, other))
        require(mine.candidates[0].tokens == tree.best, f"seed {seed}: the best was not found")
        nums = [r.diagnostics["num_expanded"] for r in (mine, theirs)]
        require(nums[0] <= nums[1], f"seed {seed}: expands {nums[0]}, the other {nums[1]}")  # type: ignore[operator]


def law_first_answer_costs_least(make: Callable[[Lookup], Strategy], cost: Callable[[float, float], float], trees: Sequence[Known]) -> None:
    """The first answer that stands first has the least f = sum of cost(h, h') + h(answer) among all answers; h is 0 at the root."""
    for seed, tree in enumerate(trees):
        h = {tokens: 1 - value for tokens, value in tree.values.items()} | {(): 0.0}
        f = {a: h[a] + math.fsum(cost(h[a[:i]], h[a[: i + 1]]) for i in range(len(a))) for a in tree.answers}
        firsts = searched(make(tree.verifier), SMALL, key=seed).result.diagnostics["first_priorities"]
        require(isinstance(firsts, list) and len(firsts) == 1, f"seed {seed}: {firsts}")
        require(abs(-firsts[0] - min(f.values())) <= TOLERANCE, f"seed {seed}: f = {-firsts[0]}, the least is {min(f.values())}")  # type: ignore[index]


# ---- how steps are shared out


def law_pays_for_width_answers(strategy: Strategy, width: int) -> None:
    """Every turn that extends asks for exactly `width` steps less the answers that are finished."""
    for key in range(6):
        done = searched(strategy, key=key)
        num_finished = 0
        for turn, answers in zip(done.turns, done.answers, strict=True):
            asks = [ask for ask in turn.asks if isinstance(ask, Extend)]
            require(not asks or len(asks) == width - num_finished, f"seed {key}: {len(asks)} steps, {num_finished} of {width} are finished")
            num_finished += sum(answer.prefix.is_final for answer in answers if hasattr(answer, "prefix"))
        require(num_finished <= width, f"seed {key}: {num_finished} answers of a width of {width}")


def law_shares(shares: Callable[[Sequence[float], int, float], list[int]]) -> None:
    """Shares sum to what there is, follow the order of the rewards, and the first is the rounded-up exact share."""
    draw = random.Random(0)
    cases = [([draw.random() for _ in range(draw.randint(1, 9))], draw.randint(0, 40), 10 ** draw.uniform(-3, 1)) for _ in range(300)]
    for rewards, num, temperature in (*cases, ([0.5] * 4, 8, 0.2), ([1.0, 0.0], 5, 1e-4), ([0.3] * 3, 2, 1.0)):
        counts = shares(rewards, num, temperature)
        require(sum(counts) == num and min(counts) >= 0, f"{counts} of {num} for {rewards} at {temperature}")
        order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
        require(all(counts[a] >= counts[b] for a, b in itertools.pairwise(order)), f"{counts} for {rewards}: a lower reward gets more")
        exact = num / math.fsum(math.exp((r - max(rewards)) / temperature) for r in rewards)
        require(exact - 1e-6 <= counts[order[0]] < exact + 1 + 1e-6, f"the best gets {counts[order[0]]} of {num}, its share is {exact}")


def law_subtrees_stay_apart(make: Callable[[int], Strategy]) -> None:
    """What the first subtrees ask does not change when there are more of them: make(num) has num subtrees."""
    for key in range(6):
        asked = [{(ask.seed, ask.prefix.tokens) for asks in extends(searched(make(num), key=key)) for ask in asks} for num in (2, 3, 5)]
        require(asked[0] < asked[1] < asked[2], f"seed {key}: fewer subtrees ask otherwise")
