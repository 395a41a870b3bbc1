"""What strategies need is known before they run; what a process does not offer is refused before any work."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import pytest

from ponder import catalogue
from ponder.core.asks import Answer, Extend, Outcome, Prefix, Prompt, Score, Turn, candidate
from ponder.core.budget import Budget
from ponder.core.errors import NotOffered
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.infer.ops import ExtendStep
from ponder.run.driver import Driver, Job
from ponder.run.needs import declared, needs_of_strategy
from ponder.run.recipe import Recipe
from ponder.testing import laws_needs
from ponder.testing.laws_strategy import LONG
from ponder.testing.toy import ToyProcess, toy_lm

LM = toy_lm("ab\n", seed=1)
EXCEPTIONS = {  # strict: those must fail
    ("critique_and_fuse", laws_needs.law_reads_what_was_found): "which of equally frequent answers it fuses is decided by their log-probabilities",
}


def make() -> ToyProcess:
    return ToyProcess(LM)


@pytest.mark.parametrize("law", laws_needs.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", catalogue.STRATEGIES)
def test_law(name, law):
    strategy = catalogue.STRATEGIES[name]
    if (name, law) in EXCEPTIONS:
        with pytest.raises(AssertionError):
            law(strategy, needs_of_strategy(strategy, LONG), make, LONG)
    else:
        law(strategy, needs_of_strategy(strategy, LONG), make, LONG)


@dataclass(frozen=True, kw_only=True)
class Secretive:
    """Asks for a score only when the first answer is one that no rehearsal makes up; reads log_p to decide how much to draw."""

    guarantee = Guarantee.BIASED
    is_late: bool

    def run(self, prompt: Prompt, rng: Rng) -> Generator[Turn, Sequence[Answer], Outcome]:
        (answer,) = yield Turn((Extend(prefix=Prefix(prompt), seed=rng.seed(0)),))
        if self.is_late and "is answer" not in answer.prefix.text:
            yield Turn((Score(prefix=Prefix(prompt), options=("a",)),))
        if answer.prefix.log_p < -0.1:
            yield Turn((Extend(prefix=Prefix(prompt), seed=rng.seed(1)),))
        return Outcome((candidate(answer.prefix),))


@pytest.mark.parametrize(("law", "is_late"), list(zip(laws_needs.LAWS, (True, False), strict=True)))
def test_laws_have_teeth(law, is_late):
    wrong = Secretive(is_late=is_late)
    with pytest.raises(AssertionError):
        law(wrong, needs_of_strategy(wrong, LONG), make, LONG)


class Poor(ToyProcess):
    """Draws whole answers, and notes every ask."""

    offers = frozenset[str]()

    def add(self, ask, max_tokens=None):
        self.added = [*getattr(self, "added", []), ask]
        return super().add(ask, max_tokens)


def job(name: str, **fields: object) -> Job:
    strategy = catalogue.strategy(name)
    return Job(id="q", prompt=LONG, recipe=Recipe(label=name, strategy=strategy, budget=Budget(**fields)), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("beam", "likeliest next tokens"), ("best_of_n", "log-probabilities of the tokens drawn"), ("particle_filter", "pause at a separator"),
     ("best_of_n:verifier=self_certainty", "far from uniform|how far each"), ("best_of_n:verifier=p_true", "of given texts"),
     ("zero_order", "given noise"), ("self_consistency:weigh=path_probability", "log-probabilities of the tokens drawn")],
)  # fmt: skip
def test_refused_before_any_work_with_the_reason(name, reason):
    process = Poor(LM)
    with pytest.raises(NotOffered, match=reason):
        list(Driver(process).run([job("greedy"), job(name)]))
    assert not hasattr(process, "added")


@pytest.mark.parametrize("name", ["greedy", "self_consistency", "adaptive", "self_refine", "best_of_n:verifier=constant"])
def test_what_needs_whole_answers_alone_runs(name):
    ((_, result),) = Driver(Poor(LM)).run([job(name)])
    assert result.stop_reason == "done"


def test_a_budget_in_dollars_needs_a_price():
    for process in (Poor(LM), make()):
        with pytest.raises(NotOffered, match=r"a price in \$.*price file"):
            list(Driver(process).run([job("greedy", usd=1.0)]))


def test_needs_are_declared_by_parts():
    assert declared(ExtendStep(is_corrected=True)) == {"log_p", "log_q"} and declared(ExtendStep()) == frozenset()
    assert declared(replace(catalogue.strategy("particle_filter"), is_corrected=True)) >= {"log_p"}  # type: ignore[type-var]
