"""Laws of votes, of what prunes them, and of the rules that stop them early. Every chance is enumerated, none is sampled."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ponder.core.asks import Candidate, Extend, Outcome, Prompt
from ponder.core.rng import Rng, enumerate_paths
from ponder.core.roles import StopRule, Strategy
from ponder.testing.exact import TOLERANCE, Measure, added, require
from ponder.testing.run import Finished, answer_all
from ponder.testing.toy import ToyLM, ToyProcess

Labels = tuple[int | None, ...]
ONE_TOKEN = Prompt(messages=(("raw", "q"),), max_tokens=1)  # an answer is one token: its distribution is the model's first row


def law_rule_is_legal(rule: StopRule, num: int = 6) -> None:
    """Whatever the answers, a rule asks for 0 to `left` draws, says the same when asked twice, and comes to its end."""
    for drawn in itertools.product((None, 0, 1, 2), repeat=num):
        labels: Labels = ()
        while more := rule.more(labels, num - len(labels)):
            require(0 <= more <= num - len(labels), f"after {labels} it wants {more} of {num - len(labels)} draws")
            require(more == rule.more(list(labels), num - len(labels)), f"after {labels} it changes its mind")
            labels = drawn[: len(labels) + more]
        require(len(labels) > 0, "it stops before the first draw")


def stops(rule: StopRule, num: int, labels: Labels = (), log_p: float = 0.0) -> Iterator[tuple[Labels, float]]:
    """(labels at the stop, their chance) for two answers whose share is uniform a priori: P(next = 0) = (n0 + 1) / (n + 2)."""
    more = rule.more(labels, num - len(labels))
    if more == 0:
        yield labels, math.exp(log_p)
    for drawn in itertools.product((0, 1), repeat=more):
        grown, p = labels, log_p
        for label in drawn:
            p += math.log((grown.count(label) + 1) / (len(grown) + 2))
            grown = (*grown, label)
        if more:
            yield from stops(rule, num, grown, p)


def overtaken(first: int, second: int, left: int) -> float:
    """Chance that `left` more draws put the second answer ahead; a tie counts half. Polya's urn, in closed form."""
    total = 0.0
    for ups in range(left + 1):
        lead = first + ups - (second + left - ups)
        chance = math.comb(left, ups) * beta(first + 1 + ups, second + 1 + left - ups) / beta(first + 1, second + 1)
        total += chance * (1.0 if lead < 0 else 0.5 if lead == 0 else 0.0)
    return total


def beta(a: int, b: int) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


def law_rule_keeps_its_error(rule: StopRule, num: int) -> float:
    """Over a uniform prior, stopping elects another answer than all `num` draws at most as often as it states. Returns how often."""
    error = total = 0.0
    for labels, chance in stops(rule, num):
        total += chance
        zeros = labels.count(0)
        first, second = max(zeros, len(labels) - zeros), min(zeros, len(labels) - zeros)
        if len(labels) < num:
            error += chance * (0.5 if first == second else overtaken(first, second, num - len(labels)))
    require(abs(total - 1) <= TOLERANCE, f"the chances of its stops sum to {total}")
    require(error <= rule.error + TOLERANCE, f"another answer with chance {error:.4f} of {num} draws, it states {rule.error:.4f}")
    return error


def law_rule_never_errs(rule: StopRule, num: int = 6) -> None:
    """For a rule that states error 0: no answers that are left, of any kind, could make another one lead or tie."""
    for drawn in itertools.product((None, 0, 1, 2), repeat=num):
        labels: Labels = ()
        while more := rule.more(labels, num - len(labels)):
            labels = drawn[: len(labels) + more]
        counts = [sum(x == label for x in labels) for label in range(3)]
        rest = max(n for i, n in enumerate(counts) if i != counts.index(max(counts)))
        require(len(labels) == num or max(counts) > rest + num - len(labels), f"{labels} stops with {num - len(labels)} of {num} draws left")


@dataclass(frozen=True)
class Coupled:
    """What a strategy does beside full voting with the same seeds, in exact expectation."""

    changed: float  # chance of another answer
    draws: float  # mean number of answers
    answers: Measure  # distribution of the answer


def law_stops_early(strategy: Strategy, full: Strategy, lm: ToyLM, prompt: Prompt = ONE_TOKEN) -> Coupled:
    """Draws the first answers of `full`, never more, costs never more, and where it draws all, elects the same."""

    def program(rng: Rng) -> tuple[Finished[Outcome], Finished[Outcome]]:
        process = ToyProcess(lm, rng)
        return answer_all(strategy.run(prompt, rng), process), answer_all(full.run(prompt, rng), process)

    changed = draws = 0.0
    answers: Measure = {}
    for (part, whole), p in enumerate_paths(program):
        seeds, wanted = asked(part), asked(whole)
        require(seeds == wanted[: len(seeds)], "it draws other answers than full voting")
        require(part.cost.generated_tokens <= whole.cost.generated_tokens, "it generates more than full voting")
        is_same = part.result.candidates[0].answer == whole.result.candidates[0].answer
        require(is_same or len(seeds) < len(wanted), "it drew everything and elects another answer")
        changed, draws = changed + p * (not is_same), draws + p * len(seeds)
        added(answers, part.result.candidates[0].answer, p)
    return Coupled(changed, draws, answers)


def asked(done: Finished[Outcome]) -> list[int]:
    return [ask.seed for turn in done.turns for ask in turn.asks if isinstance(ask, Extend)]


Prune = Callable[[Sequence[float]], list[bool]]  # log-probabilities of distinct paths -> which are kept


def law_pruning_knows_no_unit(prune: Prune, log_ps: Sequence[Sequence[float]]) -> None:
    """Kept are the same paths when all are longer by one constant factor, and in whatever order they come."""
    for log_p in log_ps:
        kept = prune(log_p)
        require(kept == prune([x - 40.0 for x in log_p]), f"{log_p} is pruned otherwise when shifted")
        require(kept == prune(list(reversed(log_p)))[::-1], f"{log_p} is pruned otherwise in another order")


def law_pruning_keeps_the_likely(prune: Prune, log_ps: Sequence[Sequence[float]]) -> None:
    """No path above the mean probability is dropped, so the likeliest never is."""
    for log_p in log_ps:
        mean = math.fsum(math.exp(x - max(log_p)) for x in log_p) / len(log_p)
        for x, is_kept in zip(log_p, prune(log_p), strict=True):
            require(is_kept or math.exp(x - max(log_p)) < mean, f"{x} of {log_p} is above the mean and dropped")


def law_copies_add_nothing(vote: Callable[[Sequence[Candidate]], Outcome], candidates: Sequence[Candidate]) -> None:
    """Paths that were sampled again change no share."""
    once, again = vote(candidates), vote((*candidates, *(replace(c) for c in candidates[:3]), candidates[0]))
    require(once.diagnostics["shares"] == again.diagnostics["shares"], "a path that was drawn again weighs more")
