"""What single strategies make of known replies: detection, checks, plans, atoms. The laws that all share are in test_refining."""

from dataclasses import replace

import pytest

from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.prompting import chance_of_first, quoted
from ponder.infer.solve_detect_verify import SolveDetectVerify, says_yes
from ponder.testing import laws_refine
from ponder.testing.laws_refine import QUESTION
from ponder.testing.run import answer_all
from ponder.testing.scripted import ScriptedProcess
from ponder.testing.toy import rendered

FIRST = {"1": 0.3, "2": 0.7}


def is_first(prompt):
    return prompt == rendered(QUESTION)


def run(strategy, reply, score=lambda prompt, option: 0.0, key=0):
    process = ScriptedProcess(reply, score=score)
    done = answer_all(strategy.run(QUESTION, TorchRng(key)), process)
    return done.result, [rendered(p) for p in process.asked]


# ---- solve, detect, verify

PLAIN = SolveDetectVerify(cues=(), max_cues=0)


@pytest.mark.parametrize("num_fast", (1, 3))
def test_a_check_that_always_says_yes_leaves_the_first_solution(num_fast):
    strategy = replace(PLAIN, num_fast=num_fast, rounds=3)
    laws_refine.law_no_fault_is_a_sample(strategy, lambda p: FIRST if is_first(p) else "Yes.", QUESTION)


def test_mending_what_was_accepted_is_caught():
    with pytest.raises(AssertionError, match="off by"):
        laws_refine.law_no_fault_is_a_sample(PLAIN, lambda p: FIRST if is_first(p) else "No, it is 1.", QUESTION)


def test_agreement_decides_whether_a_long_check_is_paid():
    """Four short checks: unanimous Yes costs no long one; three to one is enough at 0.75; two to two asks for it."""

    def replying(texts):
        texts = iter(texts)
        return lambda p: "7" if is_first(p) else next(texts) if "Reply with Yes or No" in p else "Fine. Yes" if "step by step" in p else "8"

    for texts, num_asked in ((["Yes"] * 4, 5), (["Yes", "no", "yes", "YES"], 5), (["Yes", "No", "No", "Yes"], 6)):
        result, asked = run(PLAIN, replying(texts))
        assert (result.candidates[0].answer, len(asked)) == ("7", num_asked)


def test_a_fault_is_mended_with_what_the_check_says():
    def reply(prompt):
        if is_first(prompt):
            return "It is 3."
        if "Solve the problem again" in prompt:
            return "It is 4." if quoted("The sum is wrong. No", 6000) in prompt else "lost"
        return "Yes" if "It is 4." in prompt else "No" if "Reply with" in prompt else "The sum is wrong. No"

    result, _ = run(PLAIN, reply)
    assert [c.answer for c in result.candidates] == ["4", "3"] and result.diagnostics["checks"] == ["rejected", "accepted"]


def test_a_complete_solution_is_stopped():
    """At the first cue after which the model says Yes; the rest is never generated."""
    whole = "so 5. Wait, or is it? yes 5. Wait, " + "let me check again. Wait, " * 50 + "5."
    score = lambda prompt, option: 0.0 if (option == "Yes") == ("or is it? yes 5." in prompt) else -5.0
    reply = lambda p: whole if is_first(p) else "It is 5." if "one sentence" in p else "Yes"
    stopped, asked = run(SolveDetectVerify(cues=("Wait",)), reply, score)
    assert stopped.candidates[0].text == "It is 5." and sum("already reach" in p for p in asked) == 2
    patient, asked = run(SolveDetectVerify(cues=("Wait",), complete_from=1.1, max_cues=3), reply, score)
    assert patient.candidates[0].text == whole and sum("already reach" in p for p in asked) == 3


def test_what_a_check_says():
    assert says_yes("No... on second thought, YES.") is True and says_yes("yes? No") is False and says_yes("nothing, yesterday") is None
    assert chance_of_first((0.0, 0.0)) == 0.5 and chance_of_first(()) == 0.0 and chance_of_first((-float("inf"),) * 2) == 0.0
    assert chance_of_first((-1000.0, -1001.0)) == pytest.approx(1 / (1 + 2.718281828**-1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SolveDetectVerify(agree_from=0.3),
        lambda: SolveDetectVerify(num_fast=0),
        lambda: SolveDetectVerify(mend="{question}"),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField, match="must"):
        make()
