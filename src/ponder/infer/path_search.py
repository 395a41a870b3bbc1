"""Search over paths: keep a few answers under way, go back some steps in each, go on from there in several ways, keep the best.

Paper      Ma et al. 2025, arXiv:2501.09732, search over paths
Equation   from x_t: back to x_{t-back}, num_children times on to x_{t-back+forth}, forth > back; the num best of all go on
Shapes     prompt -> num candidates and whatever finished on the way, best first
Guarantee  biased: an uphill search of R over whole paths; with num = num_children = 1 and back = 0 it is plain sampling. Going
           back prefers short answers: what has ended stays, what has not may end at the second try
Cost       about num x num_children x forth / (forth - back) plain answers; a verdict per child and round
Choose     when partial answers can be judged and a step once taken may have been a mistake; back=0 never takes one back, and
           was better at equal cost on a denoiser with a true verifier
Differs    goes back along the answer's own steps instead of adding noise to its last state: any process can do that, and the
           state gone back to is one that the process was in. So it needs a process that draws on the way
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Judge, Outcome, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import standing
from ponder.infer.compose import showing
from ponder.infer.ops import ExtendStep

Path = tuple[Prefix, ...]  # an answer after each of its steps, the empty one first
Judged = tuple[Path, Candidate]


@dataclass(frozen=True, kw_only=True)
class PathSearch:
    verifier: Verifier  # judges partial answers; an abstention ranks below every verdict
    num: int = 2  # paths kept
    num_children: int = 3  # ways tried from each
    back: int = 1  # steps that a path goes back before it goes on
    forth: int = 3  # steps that it then goes on; more than back
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        rules = (
            ("num", self.num, self.num >= 1, "at least 1"),
            ("num_children", self.num_children, self.num_children >= 1, "at least 1"),
            ("back", self.back, self.back >= 0, "at least 0"),
            ("forth", self.forth, self.forth > self.back, f"more than back = {self.back}"),
            ("until", self.until, self.until or self.step_tokens is not None, "given, or else step_tokens: without both there is one step only"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"path_search {name}={value}: must be {rule}")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        kept = yield from self.grown([(Prefix(prompt),)] * self.num * self.num_children, prompt, rng.fork(0), ())
        done: list[Judged] = []
        num_rounds = 1
        while True:
            done = ranked([*done, *(pair for pair in kept if pair[0][-1].is_final)])
            going = [path for path, _ in ranked(kept)[: self.num] if not path[-1].is_final]
            if not going:
                break
            starts = [path[: max(1, len(path) - self.back)] for path in going for _ in range(self.num_children)]
            best = tuple(c for _, c in ranked([*done, *kept])[: self.num])
            kept = yield from self.grown(starts, prompt, rng.fork(num_rounds), best)
            num_rounds += 1
        return Outcome(tuple(c for _, c in done), diagnostics={"num_rounds": num_rounds, "num_finished": len(done)})

    def grown(self, starts: Sequence[Path], prompt: Prompt, rng: Rng, best: tuple[Candidate, ...]) -> Generator[Turn, Sequence[Answer], list[Judged]]:
        """`forth` more steps of every start, judged."""
        step = ExtendStep(until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, certainty=True)
        paths = list(starts)
        for i in range(self.forth):
            if all(path[-1].is_final for path in paths):
                break
            shown = best or tuple(candidate(path[-1]) for path in paths if path[-1].tokens)
            state, _ = yield from showing(shown, step(Batch(tuple(path[-1] for path in paths)), rng.fork(i)))  # type: ignore[arg-type]
            paths = [(*path, new) if not path[-1].is_final else path for path, new in zip(paths, state)]
        candidates = tuple(candidate(path[-1]) for path in paths)
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=candidates),), best or candidates)
        judged = (replace(c, score=v.value, verdicts=(v,)) for c, v in zip(candidates, told.verdicts, strict=True))
        return list(zip(paths, judged))


def ranked(pairs: Sequence[Judged]) -> list[Judged]:
    """Best first; what the budget cut comes after what it did not, abstentions after verdicts, among equals the earlier first."""
    key = lambda c: (c.finish != "budget", c.score is not None, c.score or 0.0, standing(c))
    return sorted(pairs, key=lambda pair: key(pair[1]), reverse=True)
