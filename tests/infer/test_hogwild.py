"""Hogwild! workers on toys: the laws of strategies, plain sampling alone, and the joint distribution of two by its definition."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from ponder.core.asks import Confer, Outcome, Prefix, Prompt, Sampling
from ponder.core.beside import LAYOUTS
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.hogwild import Hogwild
from ponder.testing import laws_strategy as laws
from ponder.testing.exact import Measure, difference
from ponder.testing.laws_strategy import PROMPT, played
from ponder.testing.listening import ListeningLM
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.testing.toy_jobs import Group

COOL = Sampling(temperature=0.7)
STRATEGIES = {
    "first": Hogwild(), "vote": Hogwild(num=3, enough=None, layout="interleaved"), "two of three": Hogwild(num=3, enough=2, layout="contiguous"),
    "alone": Hogwild(num=1),
}  # fmt: skip
LM = ListeningLM(toy_lm("ab", seed=1))


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name: str, law: Callable[[Hogwild], None]):
    law(STRATEGIES[name])


def test_alone_is_a_sample():
    laws.law_alone_is_a_sample(Hogwild(num=1, sampling=COOL), COOL)


# the joint distribution of two that hear each other, by its definition


def joint(*, delay: int = 1) -> Measure:
    """P(x, y) over two answers of at most three tokens; what token n is drawn after of the other's: its first n - delay."""
    found: Measure = {}
    start = Prefix(PROMPT)
    open_pairs = [(start, start, 0.0)]
    while open_pairs:
        x, y, log_p = open_pairs.pop()
        if x.is_final and y.is_final:
            found[(x.tokens, y.tokens)] = found.get((x.tokens, y.tokens), 0.0) + math.exp(log_p)
            continue
        time = max(len(x.tokens), len(y.tokens))
        heard = [other.tokens[: max(0, time - delay)] for other in (y, x)]
        grown = []
        for one, ears in zip((x, y), heard):
            lm = LM.beside(ears)
            rows = () if one.is_final else lm.log_p(one)
            grown.append([(one, 0.0)] if one.is_final else [(lm.grown(one, v), rows[v]) for v in range(LM.end + 1)])
        open_pairs += [(a, b, log_p + p + q) for a, p in grown[0] for b, q in grown[1]]
    return found


def enumerated() -> Measure:
    strategy = Hogwild(num=2, enough=None, layout="contiguous", sampling=Sampling())

    def see(outcome: Outcome) -> Measure:
        return {tuple(sorted(c.tokens for c in outcome.candidates)): 1.0}

    return laws.enumerated(strategy, see, LM).measure  # type: ignore[arg-type]


def unordered(measure: Measure) -> Measure:
    """The vote decides who comes first: pairs without their order."""
    found: Measure = {}
    for (x, y), p in measure.items():  # type: ignore[misc]
        found[tuple(sorted((x, y)))] = found.get(tuple(sorted((x, y))), 0.0) + p
    return found


def test_two_workers_have_the_joint_distribution_of_their_definition():
    found = enumerated()
    assert difference(found, unordered(joint())) < 1e-12
    assert difference(found, unordered(joint(delay=0))) > 1e-3
    assert difference(found, unordered(joint(delay=2))) > 1e-3


def test_a_worker_that_hears_too_much_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Group, "heard", lambda group, me: tuple(t for i, job in enumerate(group.members) if i != me for t in job.prefix.tokens))
    assert difference(enumerated(), unordered(joint())) > 1e-3


# how a group ends


LONG = Prompt(messages=(("raw", "q"),), max_tokens=30)


def ended(key: int, **settings: object) -> Outcome:
    process = ToyProcess(ListeningLM(toy_lm("abcdef", seed=2)))
    return answer_all(Hogwild(**settings).run(LONG, TorchRng(key)), process).result  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_that_ends_is_the_answer(layout: str):
    for key in range(6):
        outcome = ended(key, num=3, layout=layout, separator="a")
        whole = [c for c in outcome.candidates if c.finish != "budget"]
        assert len(whole) == outcome.diagnostics["num_ended"] > 0 and all(c.finish == "stop" for c in whole)
        assert all(len(c.tokens) == outcome.diagnostics["num_steps"] for c in outcome.candidates)
        assert outcome.candidates[0] in whole or not any(c.answer for c in whole)  # one that ended without a word answers nothing
        assert outcome.confidence is None or len(whole) > 1


def test_all_that_end_vote():
    outcome = ended(1, num=3, enough=None)
    assert outcome.diagnostics["num_ended"] == 3 and outcome.confidence in (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)


def test_what_it_asks_for():
    done = played(Hogwild(num=3))
    (ask,) = done.turns[0].asks
    assert isinstance(ask, Confer)
    prompts = [part.prefix.prompt for part in ask.asks]
    assert len({(p.messages, p.stop, p.max_tokens) for p in prompts}) == 1  # what they share is read once
    assert [p.prefill for p in prompts] == [
        f"I am {a}, working with {b}. " for a, b in (("Alice", "Bob and Carol"), ("Bob", "Alice and Carol"), ("Carol", "Alice and Bob"))
    ]
    code = replace(LONG, prefill="```python\n")
    assert Hogwild().prompt(code, 1).prefill.endswith("Alice. ```python\n")


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"num": 0}, "between 1 and 8"), ({"num": 9}, "between 1 and 8"), ({"enough": 3}, "enough=3"), ({"layout": "round"}, "layout"),
     ({"separator": ""}, "separator"), ({"task": "x"}, "template"), ({"opening": "{question}"}, "template")],
)  # fmt: skip
def test_bad_settings(settings: dict[str, object], what: str):
    with pytest.raises(BadField, match=what):
        Hogwild(**settings)  # type: ignore[arg-type]
