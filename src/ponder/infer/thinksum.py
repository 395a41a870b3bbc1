"""ThinkSum: let the model recall facts, ask with each of them how likely every answer is, and do the reasoning outside the model.

Paper      Ozturkler et al. 2022, "ThinkSum: Probabilistic Reasoning over Sets Using Large Language Models", arXiv:2210.01293
Equation   z_k ~ q(. | recall(c)), k = 1 .. num;  p_k(o) = p(o | z_k, c) / sum_o' p(o' | z_k, c);  o* = argmax_o combine(p_1(o) .. p_num(o))
Shapes     prompt -> one candidate per option, the likeliest first
Guarantee  biased: the likeliest option of a mixture (or product) of the model's own beliefs
Cost       num recalled facts and num + 1 Scores of all options; the options as well where the form does not name them
Choose     a closed set of answers of about one length (form Choice) that hang on associations rather than on steps of reasoning; longer
           options are less likely. Long reasoning: self_consistency.
Differs    options that the form does not name are answers that the model drew; the question without any fact is always one of the p_k
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Choice, Extend, Outcome, Prefix, Prompt, Sampling, Score, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole
from ponder.infer.prompting import again, aside, chance_of_first, check_template, filled, quoted, replies

RECALL = "{question}\n\nDo not answer yet. State in one sentence a fact that helps to answer this."
USE = "Known:\n{fact}\n\n{question}"
Combine = Callable[[Sequence[Sequence[float]]], list[float]]  # beliefs [K][options], each row sums to 1 -> belief [options] that sums to 1


def mixture(beliefs: Sequence[Sequence[float]]) -> list[float]:
    """Mean of probabilities: one good fact is enough."""
    return [math.fsum(column) / len(beliefs) for column in zip(*beliefs, strict=True)]


def product(beliefs: Sequence[Sequence[float]]) -> list[float]:
    """Normalised product of probabilities: every fact has a veto."""
    log_p = [math.fsum(math.log(max(p, 1e-300)) for p in column) for column in zip(*beliefs, strict=True)]
    return shares(log_p)


def shares(log_p: Sequence[float]) -> list[float]:
    """exp(log_p), normalised; equal shares where none is possible."""
    found = [chance_of_first((log_p[i], *log_p[:i], *log_p[i + 1 :])) for i in range(len(log_p))]
    return found if sum(found) > 0 else [1 / len(log_p)] * len(log_p)


@dataclass(frozen=True, kw_only=True)
class ThinkSum:
    num: int = 4  # facts recalled
    combine: Combine = mixture  # or product
    num_drawn: int = 4  # answers drawn as options, where the form names none
    recall: str = RECALL  # template of {question}
    use: str = USE  # template of {question} and {fact}
    fact_tokens: int = 64  # most tokens of a fact
    max_chars: int = 2000  # shown of a fact
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how facts and options are drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num < 0 or min(self.num_drawn, self.fact_tokens, self.max_chars) < 1:
            raise BadField(f"thinksum num={self.num}, num_drawn={self.num_drawn}: must be at least 0 and 1, limits at least 1")
        check_template("thinksum recall", self.recall, ("question",))
        check_template("thinksum use", self.use, ("question", "fact"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        if isinstance(prompt.form, Choice):
            asks = [Extend(prefix=Prefix(replace(prompt, form=Choice((o,)))), seed=rng.seed(i)) for i, o in enumerate(prompt.form.options)]
            told = yield Turn(tuple(asks))
            drawn = tuple(candidate(replace(answer.prefix, prompt=prompt)) for answer in told)
        else:
            drawn = yield from replies([prompt] * self.num_drawn, self.sampling, rng.fork(0))
        options = {c.text: c for c in sorted(drawn, key=is_whole) if c.text}
        best = tuple(sorted(drawn, key=lambda c: (is_whole(c), bool(c.text)), reverse=True))
        if not options or not is_whole(best[0]):
            return Outcome(best)
        side = aside(prompt, filled(self.recall, {"question": prompt.question}), self.fact_tokens)
        facts = (yield from replies([side] * self.num, self.sampling, rng.fork(1), best=best)) if self.num else ()
        texts = dict.fromkeys(c.text for c in facts if c.text)
        asked = [prompt, *(again(prompt, filled(self.use, {"question": prompt.question, "fact": quoted(t, self.max_chars)})) for t in texts)]
        scores = yield Turn(tuple(Score(prefix=Prefix(p), options=tuple(options)) for p in asked), best)
        beliefs = [shares(answer.log_p) for answer in scores if answer.log_p]
        if not beliefs:
            return Outcome(best)
        return self.outcome(drawn, dict(zip(options, self.combine(beliefs))), len(texts))

    def outcome(self, drawn: Sequence[Candidate], belief: dict[str, float], num_facts: int) -> Outcome:
        scored = [replace(c, score=belief.get(c.text)) for c in drawn]
        ranked = sorted(scored, key=lambda c: (is_whole(c), c.score is not None, c.score or 0.0), reverse=True)
        return Outcome(tuple(ranked), ranked[0].score, {"num_facts": num_facts, "belief": dict(belief)})
