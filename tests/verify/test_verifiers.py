"""Every verifier keeps the role's contract; each also does what its card says."""

import math

import pytest

from ponder.core.asks import Candidate, Prompt, Score, Scores, chat, spent_answer
from ponder.core.errors import BadField
from ponder.verify.answers import Code, Number
from ponder.verify.arithmetic import Arithmetic
from ponder.verify.constant import Constant
from ponder.verify.exact import Exact
from ponder.verify.generated_tests import GeneratedTests
from ponder.verify.math_equal import MathEqual
from ponder.verify.mean_log_p import MeanLogP
from ponder.verify.numeric import Numeric
from ponder.verify.p_true import PTrue
from ponder.verify.pairwise import Pairwise
from ponder.verify.program_agreement import ProgramAgreement
from ponder.verify.public_tests import PublicTests
from ponder.verify.sandbox import Limits
from ponder.verify.self_certainty import SelfCertainty
from ponder.verify.unit_tests import UnitTests
from ponder.verify.value_prompt import ValuePrompt
from ponder.verify.yes_no import YesNo

ASKED = chat("What is 6 * 7?", answers=Number())
STRANGE = ("", "\x00", "\ud800", "\\boxed{" * 50, "9" * 10_000, "def f(:", "```python\nwhile True: pass", "( " * 500)
VERIFIERS = {
    "constant": Constant(),
    "exact": Exact(reference="42"),
    "math_equal": MathEqual(reference="42", seconds=1.0),
    "generated_tests": GeneratedTests(),
    "mean_log_p": MeanLogP(),
    "numeric": Numeric(reference="42"),
    "p_true": PTrue(num_samples=2),
    "pairwise": Pairwise(),
    "program_agreement": ProgramAgreement(),
    "yes_no": YesNo(),
    "public_tests": PublicTests(),
    "arithmetic": Arithmetic(),
    "self_certainty": SelfCertainty(),
    "unit_tests": UnitTests(tests="assert f() == 1", limits=Limits(seconds=1.0)),
    "value_prompt": ValuePrompt(),
}


def answered(text: str, prompt: Prompt = ASKED, tokens: int = 3, log_p: float = -1.5, certainty: float = 6.0) -> Candidate:
    return Candidate(text, prompt.answers.read(text), tuple(range(tokens)), log_p=log_p, certainty=certainty)


def values(verifier, *texts, answers=()):
    return [v.value for v in verifier.judge(ASKED, tuple(map(answered, texts)), answers)]


@pytest.mark.parametrize("name", VERIFIERS)
def test_contract(name):
    """One verdict per candidate, the same for equal ones, in range for its kind; no exception for strange text or a spent budget."""
    verifier, candidates = VERIFIERS[name], tuple(answered(t) for t in (*STRANGE, "42", "42"))
    asks = verifier.asks(ASKED, candidates)
    verdicts = verifier.judge(ASKED, candidates, tuple(spent_answer(a) for a in asks))
    assert verifier.name == name
    assert len(verdicts) == len(candidates)
    assert verdicts[-1] == verdicts[-2]
    assert all(v.value is None or (math.isfinite(v.value) and (v.kind != "probability" or 0 <= v.value <= 1)) for v in verdicts)
    assert verifier.judge(ASKED, (), ()) == verifier.asks(ASKED, ()) == ()


def test_exact_uses_the_prompt_s_own_sameness():
    assert values(Exact(reference="42"), "42.0", "43", "none", "so 42") == [1, 0, 0, 1]


def test_numeric_tolerances():
    assert values(Numeric(reference="3.14"), "3.14", "3.15", "none") == [1, 0, 0]
    assert values(Numeric(reference="3.14", absolute=0.02), "3.15", "3.13", "3.2") == [1, 1, 0]
    assert values(Numeric(reference="-200", relative=0.01), "-202", "-203", "202") == [1, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"reference": "many"}, {"reference": "1", "absolute": -1.0}, {"reference": "1", "relative": math.inf}], ids=range(3)
)
def test_numeric_refuses(settings):
    with pytest.raises(BadField):
        Numeric(**settings)


def test_math_equal():
    assert values(MathEqual(reference="\\frac{1}{2}"), "\\boxed{0.5}", "\\boxed{\\frac{2}{4}}", "\\boxed{2}", "no idea") == [1, 1, 0, 0]


def test_mean_log_p_and_self_certainty_are_per_token():
    short, long = answered("42", tokens=1, log_p=-1.0, certainty=2.0), answered("42", tokens=4, log_p=-2.0, certainty=4.0)
    none = answered("42", tokens=0, log_p=0.0, certainty=0.0)
    assert [v.value for v in MeanLogP().judge(ASKED, (short, long, none), ())] == [-1.0, -0.5, None]
    assert [v.value for v in SelfCertainty().judge(ASKED, (short, long, none), ())] == [2.0, 1.0, None]


def test_constant():
    assert values(Constant(value=0.3), "a", "b") == [0.3, 0.3]
    assert values(Constant(value=None), "a") == [None]


def test_p_true_asks_once_per_different_answer_and_normalises_over_the_options():
    verifier, candidates = PTrue(), tuple(map(answered, ("42", "41", "42", " ")))
    asks = verifier.asks(ASKED, candidates)
    assert [type(a) for a in asks] == [Score, Score]
    assert all("What is 6 * 7?" in a.prefix.prompt.question and "(A) True" in a.prefix.prompt.question for a in asks)
    assert "Proposed answer: 42" in asks[0].prefix.prompt.question
    replies = (Scores((math.log(0.03), math.log(0.01))), Scores((-2000.0, -2001.0)))
    found = [v.value for v in verifier.judge(ASKED, candidates, replies)]
    assert found == [pytest.approx(0.75), pytest.approx(math.e / (1 + math.e)), pytest.approx(0.75), None]


def test_p_true_abstains_when_unanswered_or_impossible():
    candidates = (answered("42"), answered("41"))
    assert [v.value for v in PTrue().judge(ASKED, candidates, (Scores(()), Scores((-math.inf, -math.inf))))] == [None, None]


def test_p_true_shows_the_most_frequent_answers_first():
    (ask, *_) = PTrue(num_samples=2).asks(ASKED, tuple(map(answered, ("41", "42", "42", "43"))))
    assert "brainstormed ideas: 42; 41\n" in ask.prefix.prompt.question


def test_unit_tests_judges_code_and_runs_equal_programs_once(monkeypatch):
    prompt = Prompt(messages=(("user", "f"),), answers=Code())
    texts = ("def f(): return 1", "def f(): return 2", "def f(): return 1", "no code here at all")
    verdicts = UnitTests(tests="assert f() == 1", setup="import math").judge(prompt, tuple(answered(t, prompt) for t in texts), ())
    assert [v.value for v in verdicts] == [1, 0, 1, 0]
    assert "AssertionError" in verdicts[1].detail
    assert verdicts[0].detail.startswith("passed (")
