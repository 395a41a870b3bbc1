"""Hogwild! inference: several workers write side by side, each reading at once what the others write, and decide themselves how to share the work.

Paper      Rodionov et al. 2025, "Hogwild! Inference: Parallel LLM Generation via Concurrent Attention", arXiv:2504.06261
Equation   x^w_{i+1} ~ q(. | c, x^v_{<i} of the others v as the layout places them, I am w, x^w_{<=i}), w = 1 .. num, until `enough` have ended
Shapes     prompt -> num candidates, the elected one first; those that were cut off when enough had ended last
Guarantee  biased: answers of workers that read each other are no samples of the model; num=1 is plain sampling
Cost       num answers of one length in one turn, prompts included; keys and values are written once and met by all
Choose     with a reasoning model that takes up what it reads (the paper: 32B, long chains). Small models talk past each other: for them it is
           self_consistency whose votes depend on each other.
Differs    a token reads what the others had written one step before it (the paper: in the same step). Nobody is asked in between whether its
           work is redundant, and steps carry no headings. Workers end by themselves; the paper asks for the answer when time is up
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Confer, Extend, Extensions, Outcome, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.beside import check_layout
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import one_each, voted
from ponder.infer.ops import sampled
from ponder.infer.prompting import again, check_template, filled

NAMES = ("Alice", "Bob", "Carol", "David", "Erin", "Frank", "Grace", "Heidi")
TASK = """{workers} work on one task side by side, each seeing at once what the others write. Share the work, use what another has found, \
never do again what another does, and correct each other. Whoever is sure of the answer gives it at once, in the form that the task asks for. \
The task:

{question}"""
OPENING = "I am {name}, working with {others}. "


@dataclass(frozen=True, kw_only=True)
class Hogwild:
    num: int = 2  # workers
    enough: int | None = 1  # once so many have ended, all do; None: each comes to its own end. Those that ended vote
    layout: str = "combined"  # how a worker's view is ordered: one of core.beside.LAYOUTS
    separator: str = "\n\n"  # what ends a step
    task: str = TASK  # template of {question} and {workers}
    opening: str = OPENING  # template of {name} and {others}: what each reply begins with
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 1 <= self.num <= len(NAMES):
            raise BadField(f"hogwild num={self.num}: must be between 1 and {len(NAMES)}")
        if self.enough is not None and not 1 <= self.enough <= self.num:
            raise BadField(f"hogwild enough={self.enough} of num={self.num}: must be between 1 and their number, or none for all")
        if not self.separator:
            raise BadField("hogwild separator='': an empty one would end a step at every token; give some text")
        check_layout(self.layout)
        check_template("hogwild task", self.task, ("question", "workers"))
        check_template("hogwild opening", self.opening, ("name", "others"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        if self.num == 1:
            (alone,) = yield from sampled(prompt, 1, self.sampling, rng)
            return Outcome((alone,))
        prompts = [self.prompt(prompt, i) for i in range(self.num)]
        asks = (Extend(prefix=Prefix(p), seed=rng.seed(i), sampling=self.sampling, certainty=True) for i, p in enumerate(prompts))
        (told,) = yield Turn((Confer(asks=tuple(asks), layout=self.layout, separator=self.separator, enough=self.enough),))
        assert isinstance(told, Extensions)
        return self.outcome(tuple(candidate(x.prefix) for x in told.extensions), prompt)

    def prompt(self, prompt: Prompt, number: int) -> Prompt:
        """A worker's: the same for all but for how its reply begins."""
        names = NAMES[: self.num]
        asked = again(prompt, filled(self.task, {"question": prompt.question, "workers": listed(names)}))
        others = listed([name for name in names if name != names[number]])
        return replace(asked, prefill=filled(self.opening, {"name": names[number], "others": others}) + prompt.prefill)

    def outcome(self, written: tuple[Candidate, ...], prompt: Prompt) -> Outcome:
        """A vote of those that ended; what another's end cut off is no answer."""
        found = voted(tuple(c if c.finish else replace(c, finish="budget") for c in written), one_each(written), prompt)
        num_ended, longest = sum(c.finish in ("stop", "length") for c in written), max(len(c.tokens) for c in written)
        confidence = found.confidence if num_ended > 1 else None  # of one voter, a vote says nothing
        return replace(found, confidence=confidence, diagnostics=found.diagnostics | {"num_ended": num_ended, "num_steps": longest})


def listed(names: tuple[str, ...] | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
