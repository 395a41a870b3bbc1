"""Generated tests: what a reply's tests are, who agrees with whom, and that wrong ways of counting break the law."""

import pytest

from ponder import catalogue
from ponder.core.asks import Candidate, Extension, Prefix, chat, spent_answer
from ponder.core.errors import BadField
from ponder.run.driver import ask
from ponder.testing import laws_verifier
from ponder.testing.scripted import ScriptedProcess
from ponder.verify.answers import Code
from ponder.verify.generated_tests import GeneratedTests, function_under_test, written_tests
from ponder.verify.sandbox import Limits

ASKED = chat("Write `double`, which gives twice its argument.", answers=Code())
QUICK = Limits(seconds=1.0, memory=512 << 20)
RIGHT = "def double(x):\n    return 2 * x"


def candidates(programs):
    return tuple(Candidate(f"```python\n{p}\n```", p) for p in programs)


def reply(tests):
    """As the model goes on after 'assert double('."""
    text = "\n".join(tests).removeprefix("assert double(")
    return Extension(Prefix(ASKED, text=text, finish="stop"), "stop")


def judged(verifier):
    return lambda programs, tests: [v.value for v in verifier.judge(ASKED, candidates(programs), (reply(tests),))]


class AllOrNothing(GeneratedTests):
    """Wrong: trusts every test."""

    def passed(self, program, tests):
        found = super().passed(program, tests)
        return found if len(found) == len(tests) else frozenset()


class OnlyTests(GeneratedTests):
    """Wrong: counts tests, and nobody who agrees."""

    def judge(self, prompt, candidates, answers):
        return tuple(super(OnlyTests, self).judge(prompt, (c,), answers)[0] for c in candidates)


class OnlyPrograms(GeneratedTests):
    """Wrong: counts who agrees, on whatever."""

    def judge(self, prompt, candidates, answers):
        told = super().judge(prompt, candidates, answers)
        return tuple(type(v)(float(v.detail.split("as ")[1].split()[0]), "score") for v in told)


def test_right_programs_stand_first_whatever_the_tests():
    laws_verifier.law_tests_and_programs_agree(judged(GeneratedTests()))


@pytest.mark.parametrize("mutant, world", [(AllOrNothing, "a wrong test"), (OnlyTests, "misunderstanding"), (OnlyPrograms, "a failing crowd")])
def test_one_sided_counting_is_caught(mutant, world):
    with pytest.raises(AssertionError, match=world):
        laws_verifier.law_tests_and_programs_agree(judged(mutant()))


def test_the_value_is_the_product():
    programs = (RIGHT, RIGHT + "  # again", "def double(x):\n    return 6", "no code at all")
    told = GeneratedTests().judge(
        ASKED, (*candidates(programs[:3]), Candidate(programs[3], None)), (reply(["assert double(3) == 6", "assert double(1) == 2"]),)
    )
    assert [v.value for v in told] == [4.0, 4.0, 1.0, 0.0]
    assert told[0].detail == "passes 2 of 2 generated tests, as 2 programs do" and {v.kind for v in told} == {"score"}


BAD = {
    "loops": "while True: pass",
    "leaves": "import os\nos._exit(0)",
    "exits": "raise SystemExit",
    "forks": "import os\nwhile True: os.fork()",
    "allocates": "x = bytearray(2 << 30)",
    "forges": "raise RuntimeError('1' * 16 + '1')",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "breaks": "def f(:",
}


@pytest.mark.parametrize("name", BAD)
def test_generated_code_is_contained(name):
    """Whatever a program or a test does, the others' verdicts stand."""
    program = f"{RIGHT}\n{BAD[name]}"
    verifier, tests = GeneratedTests(limits=QUICK), ["assert double(3) == 6"]
    assert [v.value for v in verifier.judge(ASKED, candidates((RIGHT, program)), (reply(tests),))] == [1.0, 0.0]
    wild = "assert double(3) == 6 or [print('x' * 10**7), exec('import os; os.fork()')]"
    assert verifier.judge(ASKED, candidates((RIGHT,)), (reply([wild]),))[0].value == 1.0


def test_what_a_reply_holds():
    text = "assert f(1) == 2, 'one'\nassert f(\n  2) == 4\nassert g(1) == 2\nassert f(1)==2\n"
    text += "assert f(3) ==\nSo f(2) is 4.\nassert f([1,\n2]) == 3\nso"
    assert list(written_tests(text, "f")) == ["assert f(1) == 2", "assert f(2) == 4", "assert f(1) == 2", "assert f([1, 2]) == 3"]


def test_what_is_asked():
    verifier = GeneratedTests(num=3)
    assert function_under_test(candidates(("def help(): pass\ndef double(x): pass", RIGHT, "def other(): pass", "x ="))) == "double"
    asks = verifier.asks(ASKED, candidates((RIGHT,)))
    assert len({a.seed for a in asks}) == 3 and asks[0].prefix.prompt.prefill.endswith("assert double(")
    assert verifier.asks(ASKED, (Candidate("no idea", None),)) == ()
    assert verifier.judge(ASKED, candidates((RIGHT,)), tuple(map(spent_answer, asks)))[0].value is None
    assert verifier.judge(ASKED, candidates((RIGHT,)), (reply(["assert double(3"]),))[0].value is None


@pytest.mark.parametrize("settings", [{"num": 0}, {"per_reply": 0}, {"max_tests": 0}, {"max_tests": 101}, {"max_tokens": 0}], ids=range(5))
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadField):
        GeneratedTests(**settings)


def test_best_of_n_finds_the_right_program_by_tests_that_the_model_wrote():
    """Three in ten samples are right; of four tests one is wrong, and a wrong program passes it alone."""
    wrong, broken = "def double(x):\n    return x * x", "def double(x):\n    return 1 / 0"
    tests = "3) == 6\nassert double(5) == 10\nassert double(3) == 9\nassert double(-2) == -4"
    process = ScriptedProcess(lambda text: tests if "assert statements" in text else {RIGHT: 0.3, wrong: 0.35, broken: 0.35})
    chosen = []
    for seed in range(4):
        result = ask(process, ASKED, catalogue.strategy("best_of_n:num=8,verifier=generated_tests"), seed=seed)
        said = [c.text for c in result.candidates]
        assert result.verdicts[0].value == max(3.0 * said.count(RIGHT), 1.0 * said.count(wrong)) and result.cost.verifier_tokens > 0
        chosen.append(result.text)
    assert chosen.count(RIGHT) >= 3 and broken not in chosen
