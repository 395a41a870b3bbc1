"""Medprompt: examples that are right, options in every place, letters mapped back."""

from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.medprompt import Medprompt, Solved, shared_words, turned, turned_back
from ponder.infer.prompting import quoted
from ponder.infer.self_consistency import SelfConsistency
from ponder.testing import laws_refine
from ponder.testing import laws_strategy as laws
from ponder.testing.exact import averaged, difference
from ponder.testing.laws_refine import QUESTION, READER
from ponder.testing.laws_strategy import played
from ponder.testing.run import answer_all
from ponder.testing.scripted import ScriptedProcess
from ponder.testing.toy import rendered
from ponder.verify.answers import Choice, OneOf

POOL = tuple(Solved(Prompt(messages=(("raw", f"pool question {i}?"),), answers=READER, max_tokens=100_000), "7") for i in range(3))
STRATEGIES = {
    "medprompt": Medprompt(num=3),
    "medprompt with a pool": Medprompt(
        num=2, num_shots=2, pool=tuple(Solved(Prompt(messages=(("raw", f"{q}?"),), max_tokens=2), a) for q, a in (("x", "a"), ("y", "b")))
    ),
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


def test_quotations_hold():
    shown = laws_refine.law_quotations_hold(Medprompt(pool=POOL, max_chars=900), QUESTION, lambda asked, said: f"{said}\n7")
    assert shown >= len(laws_refine.HOSTILE) - 1
    laws_refine.law_survives_a_small_context(Medprompt(pool=POOL, num=1, num_shots=0), QUESTION, lambda prompt: "7")


def test_one_without_examples_is_a_sample():
    laws.law_alone_is_a_sample(Medprompt(num=1), Medprompt().sampling)
    for key in range(4):
        ours, theirs = (played(s, key=key).result for s in (Medprompt(num=5), SelfConsistency(num=5, sampling=Medprompt().sampling)))
        assert ours.candidates[0].answer == theirs.candidates[0].answer and ours.confidence == theirs.confidence


def run(strategy, prompt, reply):
    process = ScriptedProcess(reply)
    return answer_all(strategy.run(prompt, TorchRng(0)), process).result, [rendered(p) for p in process.asked]


def test_examples_are_near_and_right():
    pool = tuple(
        Solved(replace(QUESTION, messages=(("raw", text),)), answer)
        for text, answer in (("what is iron?", "7"), ("far off", "7"), ("what is tin?", "8"))
    )
    asked_for = replace(QUESTION, messages=(("raw", "what is lead?"),))
    _, asked = run(Medprompt(pool=pool, num_shots=2, num=1), asked_for, lambda p: "thinking, so 7")
    assert sorted(asked[:3]) == ["what is iron?", "what is lead?", "what is tin?"] and len(asked) == 4
    assert quoted("what is iron?\nthinking, so 7", 999) in asked[3] and "tin" not in asked[3], "only answers that are right become examples"
    assert shared_words("What is iron?", "what is IRON made of") == 3 / 5 and shared_words("", "") == 0.0


LETTERS = Prompt(messages=(("raw", "Which one?\n(A) iron\n(B) tin\n(C) lead\n"),), answers=Choice(letters="ABC"), max_tokens=100)
TEXTS = Prompt(messages=(("raw", "Which one?\nOptions: iron, tin, lead"),), answers=OneOf(options=("iron", "tin", "lead")), max_tokens=100)


def test_options_turn_and_letters_turn_back():
    assert turned(LETTERS.question, 1) == "Which one?\n(A) lead\n(B) iron\n(C) tin\n"
    assert turned(TEXTS.question, 1) == "Which one?\nOptions: lead, iron, tin"
    assert turned(LETTERS.question, 3) == LETTERS.question and turned("Options are few", 2) == "Options are few"
    for turn in range(7):  # iron was A, wherever it stands now
        place = turned(LETTERS.question, turn).split("iron")[0][-3]
        assert turned_back(place, LETTERS.question, turn) == "A"
    assert turned_back(None, LETTERS.question, 1) is None and turned_back("42", LETTERS.question, 1) == "42"


def first_place(prompt):
    """A model that names whatever stands first."""
    return "The answer is (A)." if "(A)" in prompt else prompt.split("Options: ")[1].split(",")[0]


@pytest.mark.parametrize("prompt", (LETTERS, TEXTS))
def test_a_preference_for_a_place_cancels(prompt):
    result, _ = run(Medprompt(num=3), prompt, first_place)
    assert result.diagnostics["num_tied"] == 3 and result.confidence == pytest.approx(1 / 3)


def likes_tin(prompt):
    """Names tin by the letter that it has now, seven times of ten; else the first place."""
    lines = {line[4:]: line[1] for line in prompt.splitlines() if line.startswith("(")}
    return {f"The answer is ({lines['tin']}).": 0.7, "It must be A: the answer is (A).": 0.3}


@dataclass(frozen=True, kw_only=True)
class Confused(Medprompt):
    """Mutant: counts letters as they were said, whatever the order."""

    def run(self, prompt, rng):
        return (
            yield from SelfConsistency(num=self.num, sampling=self.sampling).run(
                replace(prompt, messages=(("raw", turned(prompt.question, 1)),)), rng
            )
        )


def test_votes_are_for_options_not_for_letters():
    """Three turns: tin wins unless two or three of them named the first place; each of those names another option."""

    def elected(kind):
        measured = lambda rng: {answer_all(kind(num=3).run(LETTERS, rng), ScriptedProcess(likes_tin, rng)).result.candidates[0].answer: 1.0}
        return averaged(measured, 1000).measure

    found = elected(Medprompt)
    three, two = 0.7**3, 3 * 0.7**2 * 0.3
    assert found["B"] >= three + two - 1e-12
    assert difference(found, elected(Confused)) > 0.1


def test_the_elected_letter_is_said_in_the_order_that_was_asked():
    """Only the turned questions name tin: the answer is written out for the original order."""
    reply = lambda p: "The answer is (C)." if p == rendered(LETTERS) else likes_tin(p).__iter__().__next__()
    result, asked = run(Medprompt(num=3), LETTERS, reply)
    assert result.candidates[0].text == "The answer is (B)." and result.candidates[1].text == "The answer is (C)." and len(asked) == 4


def test_bad_settings_are_refused():
    for make in (lambda: Medprompt(num=0), lambda: Medprompt(num_shots=-1), lambda: Medprompt(few_shots="{question}")):
        with pytest.raises(BadField, match="must"):
            make()
