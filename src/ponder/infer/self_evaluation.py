"""Self-evaluation: the model says, halfway and at the end, whether starting over would do better; weak answers are dropped, good ones end the run.

Paper      Manvi et al. 2024, "Adaptive Inference-Time Compute: LLMs Can Predict if They Can Do Better, Even Mid-Generation", arXiv:2410.02725
Equation   draw `batch` answers, x^k at T_k = hot - (hot - cold) exp(-k / rise);  after prune_at tokens keep the best share `keep` by r;
           end when max r(x) >= stop_from, else draw another batch, up to num;  x* = argmax r(x);  r(x) = 1 - P(Yes | would a new start be better?)
Shapes     prompt -> at most num candidates, best first; dropped ones stand last, cut off
Guarantee  biased: best-of-n with a random n
Cost       on average (1 - (1 - p)^num) / p answers one by one, p the chance that one is good enough; one verdict each, two with prune_at
Choose     open questions without a checkable answer, with a model trained to say so, as the paper's is. An untrained one
           answers near its prior: then p_true or mean_probability as verifier, or best_of_n.
Differs    the paper trains the model for its question; here it is asked zero-shot. The rise of temperature is a guess at its schedule
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import (
    ABSTAIN,
    Answer,
    Ask,
    Candidate,
    Extend,
    Judge,
    Outcome,
    Prefix,
    Prompt,
    Sampling,
    Score,
    Scores,
    Turn,
    Verdict,
    candidate,
)
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import is_whole, standing
from ponder.infer.prompting import aside, chance_of_first, check_template, filled, quoted

RESTART = "{question}\n\nAn answer, perhaps unfinished:\n{answer}\n\nWould an answer written from scratch be better? Reply with Yes or No."


@dataclass(frozen=True, kw_only=True)
class NoBetterRestart:
    """Verifier of whole and partial answers: the model's probability that a new start would not be better."""

    question: str = RESTART  # template of {question} and {answer}
    max_chars: int = 4000  # shown of the answer
    name: str = "no_better_restart"

    def __post_init__(self) -> None:
        check_template("no_better_restart", self.question, ("question", "answer"))

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        texts = [filled(self.question, {"question": prompt.question, "answer": quoted(c.text, self.max_chars)}) for c in candidates]
        return tuple(Score(prefix=Prefix(aside(prompt, text, 1)), options=("No", "Yes")) for text in texts)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        log_p = [a.log_p if isinstance(a, Scores) else () for a in answers]
        return tuple(Verdict(chance_of_first(pair), "probability") if pair else ABSTAIN for pair in log_p)


@dataclass(frozen=True, kw_only=True)
class SelfEvaluation:
    num: int = 8  # most answers drawn
    batch: int = 1  # drawn beside each other
    stop_from: float = 0.7  # verdict that ends the run
    prune_at: int | None = None  # tokens after which a batch is thinned; None: never
    keep: float = 0.5  # share of a batch that goes on
    cold: float = 0.1  # temperature of the first answer
    hot: float = 1.0  # that of very late ones
    rise: float = 2.0  # answers in which the distance to `hot` falls by e
    verifier: Verifier = field(default_factory=NoBetterRestart)  # judges whole and partial answers

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.num or not 0 < self.keep <= 1:
            raise BadField(f"self_evaluation num={self.num}, batch={self.batch}, keep={self.keep}: must be 1 <= batch <= num and 0 < keep <= 1")
        if self.rise <= 0 or (self.prune_at is not None and self.prune_at < 1):
            raise BadField(f"self_evaluation rise={self.rise}, prune_at={self.prune_at}: rise must be above 0, prune_at at least 1 or None")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        judged: list[Candidate] = []
        num_drawn = 0
        while num_drawn < self.num:
            numbers = range(num_drawn, min(self.num, num_drawn + self.batch))
            new = yield from self.grown(prompt, numbers, tuple(judged), rng)
            judged = sorted([*judged, *new], key=rank, reverse=True)
            num_drawn = numbers.stop
            if (judged[0].score or 0.0) >= self.stop_from or not any(is_whole(c) for c in new):  # good enough, or the budget is spent
                break
        num_pruned = sum(not is_whole(c) for c in judged)
        return Outcome(tuple(judged), diagnostics={"num_drawn": num_drawn, "num_pruned": num_pruned})

    def grown(self, prompt: Prompt, numbers: range, best: tuple[Candidate, ...], rng: Rng) -> Generator[Turn, Sequence[Answer], list[Candidate]]:
        """A batch of answers, judged; those that were dropped halfway are cut off."""
        asks = [self.ask(Prefix(prompt), k, rng.seed(k), self.prune_at) for k in numbers]
        told = yield Turn(tuple(asks), best)
        prefixes = [answer.prefix for answer in told]
        dropped: list[Candidate] = []
        if self.prune_at is not None and len(prefixes) > 1:
            halves = yield from self.judged(prompt, [candidate(p) for p in prefixes], best)
            order = sorted(range(len(halves)), key=lambda i: rank(halves[i]), reverse=True)
            cut = [i for i in order[math.ceil(self.keep * len(order)) :] if not prefixes[i].is_final]  # an ended answer costs no more
            dropped = [replace(halves[i], finish="budget") for i in cut]
            numbers_left = [k for i, k in enumerate(numbers) if i not in cut]
            prefixes = [p for i, p in enumerate(prefixes) if i not in cut]
        else:
            numbers_left = list(numbers)
        open_ones = [i for i, p in enumerate(prefixes) if not p.is_final]
        if open_ones:
            asks = [self.ask(prefixes[i], numbers_left[i], rng.seed(numbers_left[i], 1), None) for i in open_ones]
            told = yield Turn(tuple(asks), best or shown(prefixes))
            for i, answer in zip(open_ones, told, strict=True):
                prefixes[i] = answer.prefix
        return [*(yield from self.judged(prompt, [candidate(p) for p in prefixes], best)), *dropped]

    def judged(
        self, prompt: Prompt, candidates: Sequence[Candidate], best: tuple[Candidate, ...]
    ) -> Generator[Turn, Sequence[Answer], list[Candidate]]:
        ask = Judge(verifier=self.verifier, prompt=prompt, candidates=tuple(candidates))
        (told,) = yield Turn((ask,), best or tuple(sorted(candidates, key=is_ended, reverse=True)))
        return [replace(c, score=v.value, verdicts=(v,)) for c, v in zip(candidates, told.verdicts, strict=True)]

    def ask(self, prefix: Prefix, number: int, seed: int, limit: int | None) -> Extend:
        heat = self.hot - (self.hot - self.cold) * math.exp(-number / self.rise)
        return Extend(prefix=prefix, seed=seed, max_tokens=limit, sampling=Sampling(temperature=heat), certainty=True)


def shown(prefixes: Sequence[Prefix]) -> tuple[Candidate, ...]:
    return tuple(sorted(map(candidate, prefixes), key=is_ended, reverse=True))


def is_ended(c: Candidate) -> bool:
    return c.finish not in (None, "budget")


def rank(c: Candidate) -> tuple[bool, float, tuple[bool, bool, float]]:
    return is_whole(c), -math.inf if c.score is None else c.score, standing(c)
