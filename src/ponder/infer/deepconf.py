"""DeepConf: let only confident answers vote, and give up on an answer as soon as a stretch of it is not confident.

Paper      Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260
Equation   C_t = -mean of the `top` largest log p at token t;  conf(x) = min over windows of `window` tokens of mean C_t;
           bar = the largest b with conf >= b for a share `keep` of the first num_warm answers;  y* = argmax_y sum conf(x) 1[y(x) = y, conf(x) >= bar]
Shapes     prompt -> at most num candidates, the winner's best one first; those that were given up stand last, cut off
Guarantee  biased: a vote of a confident selection
Cost       num_warm whole answers in one turn; the others in steps of step_tokens, each until it falls below the bar; no verifier
Choose     long reasoning of a model whose confidence says something. num_warm = num: nothing is cut, all are filtered (offline).
           Short answers: rpc or adaptive.
           Other measures (of the whole, its end, its worst groups) weigh and filter; what is cut is always a matter of the lowest group.
Differs    an answer shorter than a window is one window; the others run by batches of num_warm and end with the first batch after
           which the leader has a share of at least `share`; the paper's window is 2048 tokens
"""

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Extend, Outcome, Prefix, Prompt, Sampling, TokenLogP, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import best_first, is_whole, voted

FLOOR = -100.0  # nats: what an impossible alternative counts


Measure = Callable[[Sequence[float], int], float]  # confidences of an answer's tokens, window -> its confidence


def confidence(token: TokenLogP) -> float:
    """C_t, large where the model is sure: the other alternatives are unlikely then."""
    return -math.fsum(max(log_p, FLOOR) for _, log_p in token.top) / max(1, len(token.top))


def groups(confidences: Sequence[float], window: int) -> list[float]:
    """Mean over every `window` tokens in a row, or over all where there are fewer; [0] without any."""
    size = max(1, min(window, len(confidences)))
    sums = list(itertools.accumulate(confidences, initial=0.0))
    return [(after - before) / size for before, after in zip(sums, sums[size:])] or [0.0]


def lowest_group(confidences: Sequence[float], window: int) -> float:
    return min(groups(confidences, window))


def bottom_groups(confidences: Sequence[float], window: int) -> float:
    """Mean of the lowest tenth of all groups, one at least."""
    ranked = sorted(groups(confidences, window))
    lowest = ranked[: max(1, len(ranked) // 10)]
    return math.fsum(lowest) / len(lowest)


def tail_group(confidences: Sequence[float], window: int) -> float:
    """The last group, where the answer is."""
    return groups(confidences, window)[-1]


def whole_mean(confidences: Sequence[float], window: int) -> float:
    return groups(confidences, max(1, len(confidences)))[0]


@dataclass(frozen=True)
class Trace:
    """An answer under way and the confidence of each of its tokens."""

    prefix: Prefix
    confidences: tuple[float, ...] = ()
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class DeepConf:
    num: int  # most answers
    num_warm: int = 8  # of them drawn whole, to learn the bar
    keep: float = 0.9  # share of the warm answers at or above the bar; 0.1 is the paper's bold setting
    share: float = 0.95  # of the votes: with so much for one answer no further batch is drawn
    window: int = 64  # tokens of a group
    top: int = 20  # alternatives whose log-probabilities are averaged
    step_tokens: int = 32  # tokens between two looks at the bar
    measure: Measure = lowest_group  # what weighs and filters the votes; also bottom_groups, tail_group, whole_mean
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 1 <= self.num_warm <= self.num:
            raise BadField(f"deepconf num={self.num}, num_warm={self.num_warm}: must be 1 <= num_warm <= num")
        if not (0 < self.keep <= 1 and self.share > 0):
            raise BadField(f"deepconf keep={self.keep}, share={self.share}: must be above 0, keep at most 1")
        if min(self.window, self.top, self.step_tokens) < 1:
            raise BadField(f"deepconf window={self.window}, top={self.top}, step_tokens={self.step_tokens}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        traces = yield from self.grown([Trace(Prefix(prompt))] * self.num_warm, None, (), rng.fork(0))
        bar, worth = self.bar(traces, lowest_group), self.bar(traces, self.measure)
        outcome = self.elected(traces, worth, prompt)
        while len(traces) < self.num and (outcome.confidence or 0.0) < self.share:
            fresh = [Trace(Prefix(prompt))] * min(self.num_warm, self.num - len(traces))
            new = yield from self.grown(fresh, bar, outcome.candidates, rng.fork(len(traces)))
            traces = [*traces, *new]
            outcome = self.elected(traces, worth, prompt)
            if any(t.prefix.finish == "budget" for t in new):
                break
        told = {"num_drawn": len(traces), "num_cut": sum(t.is_cut for t in traces), "bar": worth}
        return replace(outcome, diagnostics=outcome.diagnostics | told)

    def grown(
        self, traces: Sequence[Trace], bar: float | None, best: tuple[Candidate, ...], rng: Rng
    ) -> Generator[Turn, Sequence[Answer], list[Trace]]:
        """The traces at their end, or where they fell below the bar; whole in one turn without a bar."""
        traces, step = list(traces), 0
        while under_way := [i for i, t in enumerate(traces) if not t.prefix.is_final and not t.is_cut]:
            limit = None if bar is None else self.step_tokens
            asks = (
                Extend(
                    prefix=traces[i].prefix, seed=rng.seed(step, i), max_tokens=limit, sampling=self.sampling, certainty=True, logprobs=self.top
                )
                for i in under_way
            )  # fmt: skip
            answers = yield Turn(tuple(asks), best)
            for i, answer in zip(under_way, answers, strict=True):
                confidences = (*traces[i].confidences, *map(confidence, answer.logprobs))
                is_low = bar is not None and len(confidences) >= self.window and lowest_group(confidences, self.window) < bar
                traces[i] = Trace(answer.prefix, confidences, is_low and not answer.prefix.is_final)
            step += 1
        return traces

    def bar(self, traces: Sequence[Trace], measure: Measure) -> float:
        ranked = sorted((measure(t.confidences, self.window) for t in traces), reverse=True)
        return ranked[math.ceil(self.keep * len(ranked)) - 1]

    def elected(self, traces: Sequence[Trace], bar: float, prompt: Prompt) -> Outcome:
        """The vote of those at or above the bar; the others after them, in no group."""
        ended = [candidate(replace(t.prefix, finish="budget") if t.is_cut else t.prefix) for t in traces]
        worth = [self.measure(t.confidences, self.window) for t in traces]
        kept = [i for i, c in enumerate(ended) if worth[i] >= bar and is_whole(c)]
        outcome = voted([ended[i] for i in kept], [worth[i] for i in kept], prompt)
        others = best_first([c for i, c in enumerate(ended) if i not in kept])
        told = {"num_kept": len(kept), "num_abstained": len(ended) - int(outcome.diagnostics["num_voters"])}  # type: ignore[call-overload]
        return replace(outcome, candidates=(*outcome.candidates, *others), diagnostics=outcome.diagnostics | told)
