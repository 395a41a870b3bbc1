"""Laws of the Strategy role, run on a toy process. A law takes the strategy and raises AssertionError saying what it found."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Sequence

from torch import Tensor

from ponder.core.asks import Candidate, Confer, Extend, Extension, Judge, Outcome, Prefix, Prompt, Sampling, candidate
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng, TorchRng
from ponder.core.roles import Process, Resampler, Strategy
from ponder.testing.exact import TOLERANCE, Expected, Measure, averaged, difference, require
from ponder.testing.run import Finished, answer_all
from ponder.testing.toy import ToyLM, ToyProcess, toy_lm

LM = toy_lm("ab", seed=1)
PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=3)
LONG = Prompt(messages=(("raw", "q"),), max_tokens=12, stop=("bb",))


def played(strategy: Strategy, prompt: Prompt = LONG, *, key: int = 0, spent_after: int | None = None, order: int = 1) -> Finished[Outcome]:
    return answer_all(strategy.run(prompt, TorchRng(key)), ToyProcess(LM), spent_after=spent_after, order=order)


def law_ends_when_spent(strategy: Strategy) -> None:
    """Whenever the budget ends, the strategy ends too, in at most a few more turns, with at least one candidate."""
    num_turns = len(played(strategy).turns)
    for spent_after in range(num_turns + 1):
        done = played(strategy, spent_after=spent_after)
        require(len(done.result.candidates) > 0, f"no candidate when the budget ends at turn {spent_after}")
        require(len(done.turns) <= spent_after + 4, f"{len(done.turns)} turns when the budget ended at turn {spent_after}")


def law_shows_its_best(strategy: Strategy) -> None:
    """Every turn after the first carries candidates, each of them something the process really said."""
    done = played(strategy)
    for number, turn in enumerate(done.turns[1:], 1):
        require(len(turn.best) > 0, f"turn {number} carries no candidate")
    for shown in (c for turn in done.turns for c in turn.best):
        require_true_to_model(shown, LM, LONG)


def require_true_to_model(shown: Candidate, lm: ToyLM, prompt: Prompt) -> None:
    """Text, answer, finish and log_p are those of the candidate's tokens."""
    prefix = Prefix(prompt)
    for token in shown.tokens:
        prefix = lm.grown(prefix, token)
    true = candidate(prefix)
    require((shown.text, shown.answer) == (true.text, true.answer), f"{shown} tells another text than its tokens {true.text!r}")
    require(abs(shown.log_p - true.log_p) <= 1e-9, f"log_p {shown.log_p} of {shown.text!r}: the model says {true.log_p}")
    require(shown.finish in (true.finish, "budget"), f"finish {shown.finish!r} of {shown.text!r}: it is {true.finish!r}")


def law_direct_is_what_it_first_asked_for(strategy: Strategy) -> None:
    """The answer of one that says it is direct is the answer to its very first ask, an Extend, for every seed and when the budget ends."""
    require(bool(getattr(strategy, "is_direct", False)), f"{strategy} does not say that it is direct")
    for key in range(8):
        for spent_after in (None, 1):
            done = played(strategy, key=key, spent_after=spent_after)
            first, answer = done.turns[0].asks[0], done.answers[0][0]
            require(isinstance(first, Extend) and isinstance(answer, Extension), f"{strategy} first asks for {first}")
            chosen = done.result.candidates[0]
            require(
                isinstance(answer, Extension) and chosen.tokens == answer.prefix.tokens, f"{strategy} first drew another text than {chosen.text!r}"
            )


def law_candidates_are_true(strategy: Strategy) -> None:
    """Every candidate's text, answer and log_p are those of its tokens; all are finished."""
    for c in played(strategy).result.candidates:
        require_true_to_model(c, LM, LONG)
        require(c.finish is not None, f"candidate {c.text!r} is not finished")


def law_repeats(strategy: Strategy) -> None:
    """Equal rngs give equal turns and an equal outcome."""
    once, twice = played(strategy), played(strategy)
    require(once == twice, "two runs from one seed differ")


def law_order_is_nothing(strategy: Strategy) -> None:
    """The order in which the asks of a turn are worked on changes nothing (costs aside: a shared prefix is paid by the first)."""
    once, twice = played(strategy), played(strategy, order=-1)
    require(once.turns == twice.turns and once.result == twice.result, "asks worked on last first gave another outcome")


def law_replays(strategy: Strategy) -> None:
    """A function of (prompt, rng, answers): fed recorded answers, it yields the same turns. That is how a crashed run resumes."""
    done = played(strategy)
    running = strategy.run(LONG, TorchRng(0))
    turn = next(running)
    for number, (wanted, answers) in enumerate(zip(done.turns, done.answers, strict=True)):
        require(turn == wanted, f"turn {number} differs on replay")
        try:
            turn = running.send(answers)
        except StopIteration as stop:
            require(stop.value == done.result, "the outcome differs on replay")


def law_settings_are_data(strategy: Strategy) -> None:
    """A frozen keyword-only dataclass that survives pickle."""
    require(dataclasses.is_dataclass(strategy), "settings must be a dataclass")
    params = getattr(type(strategy), "__dataclass_params__")  # noqa: B009
    require(params.frozen, "settings must be frozen")
    require(all(f.kw_only for f in dataclasses.fields(strategy)), "settings must be keyword-only")  # type: ignore[arg-type]
    require(pickle.loads(pickle.dumps(strategy)) == strategy, "settings do not survive pickle")


def law_seeds_are_apart(strategy: Strategy) -> None:
    """No two sampled extensions of a run share their noise (seed and drift): that is shared draws, and a vote over copies."""
    drawn = [part for turn in played(strategy).turns for ask in turn.asks for part in (ask.asks if isinstance(ask, Confer) else (ask,))]
    asks = [ask for ask in drawn if isinstance(ask, Extend) and ask.sampling.temperature > 0]
    num_apart = len({(ask.seed, ask.drift) for ask in asks})
    require(num_apart == len(asks), f"{len(asks)} sampled asks share {num_apart} seeds")


def law_asks_are_legal(strategy: Strategy) -> None:
    """No ask about a final prefix, no empty ask, every turn asks something, judged candidates are there."""
    for number, turn in enumerate(played(strategy).turns):
        require(len(turn.asks) > 0, f"turn {number} asks nothing")
        for ask in turn.asks:
            require(bool(ask.candidates) if isinstance(ask, Judge) else not ask.prefix.is_final, f"turn {number}: illegal ask {ask}")


def law_says_what_it_is(strategy: Strategy) -> None:
    """Declares a guarantee; confidence is None or in [0, 1]; diagnostics hold only finite plain values."""
    require(isinstance(strategy.guarantee, Guarantee), f"guarantee {strategy.guarantee!r}")
    outcome = played(strategy).result
    require(outcome.confidence is None or -1e-12 <= outcome.confidence <= 1 + 1e-12, f"confidence {outcome.confidence}")
    require_plain(outcome.diagnostics)


def require_plain(value: object) -> None:
    if isinstance(value, dict):
        require(all(isinstance(k, str) for k in value), f"diagnostics key that is no str in {value}")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            require_plain(item)
    else:
        require(isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)), f"diagnostics hold {value!r}")


LAWS: tuple[Callable[[Strategy], None], ...] = (
    law_ends_when_spent,
    law_shows_its_best,
    law_candidates_are_true,
    law_repeats,
    law_order_is_nothing,
    law_replays,
    law_settings_are_data,
    law_seeds_are_apart,
    law_asks_are_legal,
    law_says_what_it_is,
)


def enumerated(strategy: Strategy, see: Callable[[Outcome], Measure], lm: ToyLM = LM, prompt: Prompt = PROMPT) -> Expected:
    """E see(outcome) over every random path of model and strategy together."""

    def program(rng: Rng) -> Measure:
        return see(answer_all(strategy.run(prompt, rng), ToyProcess(lm, rng)).result)

    return averaged(program, 200_000)


def law_alone_is_a_sample(strategy: Strategy, sampling: Sampling) -> Expected:
    """With one particle or one answer, the answer has exactly the distribution of plain sampling. Returns what was enumerated."""
    found = enumerated(strategy, lambda outcome: {outcome.candidates[0].tokens: 1.0})
    wanted: Measure = {p.tokens: math.exp(p.log_q) for p in LM.completions(PROMPT, sampling)}
    error = difference(found.measure, wanted)
    require(error <= TOLERANCE, f"the answer's distribution is off by {error:.3e}")
    return found


def law_weights_are_proper(
    strategy: Strategy, log_weight: Callable[[Prefix], float], sampling: Sampling, *, lm: ToyLM = LM, prompt: Prompt = PROMPT
) -> Expected:
    """E[Z delta_answer] = q(x) exp(log_weight(x)), where Z = exp(diagnostics["log_evidence"]). Returns what was enumerated."""

    def see(outcome: Outcome) -> Measure:
        evidence = outcome.diagnostics["log_evidence"]
        require(isinstance(evidence, float), "the outcome has no log_evidence")
        return {outcome.candidates[0].tokens: math.exp(evidence)}  # type: ignore[arg-type]

    found = enumerated(strategy, see, lm, prompt)
    wanted: Measure = {p.tokens: math.exp(p.log_q + log_weight(p)) for p in lm.completions(prompt, sampling)}
    error = difference(found.measure, wanted)
    total = math.fsum(wanted.values())
    require(error <= TOLERANCE * max(1.0, total), f"off by {error:.3e}: evidence {found.normaliser:.9g}, wanted {total:.9g}")
    return found


def law_more_never_hurts(make: Callable[[int], Strategy], process: Callable[[], Process], prompt: Prompt, sizes: Sequence[int] = (1, 2, 4)) -> None:
    """The more search, seed by seed, the better or equal the score of the answer. For searches that keep their best."""
    for key in range(4):
        scores = [answer_all(make(num).run(prompt, TorchRng(key)), process()).result.candidates[0].score for num in sizes]
        known = [-math.inf if s is None else s for s in scores]
        require(known == sorted(known), f"more search lowered the score: {scores} at sizes {sizes}")


def law_answers_by_meaning(vote: Callable[[Prompt, Sequence[Candidate]], Candidate], prompt: Prompt, texts: Sequence[str], wanted: str) -> None:
    """Candidates with `texts` vote; the winner's answer is the same as `wanted` for the prompt's reader."""
    drawn = [Candidate(text, prompt.answers.read(text), tokens=(i,), log_p=-1.0, finish="stop") for i, text in enumerate(texts)]
    won = vote(prompt, drawn).answer
    require(won is not None and prompt.answers.same(won, wanted), f"{texts} elected {won!r}, not {wanted!r}")


def law_candidates_are_distinct(strategy: Strategy) -> None:
    """No candidate twice. For searches, whose copies would inflate a vote."""
    candidates = played(strategy).result.candidates
    require(len({(c.tokens, c.text) for c in candidates}) == len(candidates), f"{[c.text for c in candidates]} holds copies")


def law_uses_its_resampler(make: Callable[[Resampler], Strategy], resampler: Resampler) -> None:
    """A strategy that takes a resampler calls it, and with it alone decides who lives on."""
    calls: list[list[int]] = []

    def spy(log_w: Tensor, num: int, rng: Rng) -> Tensor:
        ancestors = resampler(log_w, num, rng)
        calls.append(ancestors.tolist())
        return ancestors

    outcome = played(make(spy)).result
    require(len(calls) > 0, "the resampler was never called")
    require(outcome.diagnostics["ancestors"] == calls, f"ancestors {outcome.diagnostics['ancestors']}, the resampler said {calls}")


def law_pass_at_k(estimate: Callable[[int, int, int], float]) -> None:
    """E estimate(n, C, k) = 1 - (1 - p)^k for C ~ Binomial(n, p), exactly."""
    for n, k, p in ((5, 2, 0.3), (8, 8, 0.1), (10, 3, 0.55), (4, 1, 0.9)):
        mean = math.fsum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * estimate(n, c, k) for c in range(n + 1))
        require(abs(mean - (1 - (1 - p) ** k)) <= TOLERANCE, f"pass@{k} of {n}: mean {mean:.6f}, wanted {1 - (1 - p) ** k:.6f}")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of distinct character n-grams among all of `texts`: 1 when nothing repeats, 0 when there are none."""
    grams = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / max(1, len(grams))
