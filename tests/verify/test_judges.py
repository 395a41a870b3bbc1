"""Judges that ask the model: orders, ties, prefixes, programs, and what a verdict costs on the real engine."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ponder.catalogue import open_model, task
from ponder.core.asks import Candidate, Extension, Prefix, Scores, chat, spent_answer
from ponder.core.budget import Budget
from ponder.core.errors import BadField
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.run.driver import ask
from ponder.testing import laws_verifier
from ponder.verify.answers import Number
from ponder.verify.p_true import PTrue
from ponder.verify.pairwise import Pairwise
from ponder.verify.program_agreement import ProgramAgreement
from ponder.verify.value_prompt import ValuePrompt
from ponder.verify.yes_no import YesNo

ASKED = chat("What is 6 * 7?", answers=Number())
GOOD, POOR = (Candidate(t, t, (i,), finish="length") for i, t in enumerate(("It is forty-two.", "It is nine.")))


class OneOrder(Pairwise):
    """Wrong: trusts the first order."""

    def judge(self, prompt, candidates, answers):
        doubled = [x for there in answers[::2] for x in (there, Scores(there.log_p[::-1]))]
        return super().judge(prompt, candidates, doubled)


@pytest.mark.parametrize("lean", [0.0, 0.7, -2.0, 5.0])
def test_an_order_is_nothing_to_the_pairwise_judge(lean):
    laws_verifier.law_order_is_nothing_to_a_judge(Pairwise(), ASKED, (GOOD, POOR), lean)


def test_a_judge_of_one_order_fails():
    with pytest.raises(AssertionError):
        laws_verifier.law_order_is_nothing_to_a_judge(OneOrder(), ASKED, (GOOD, POOR), 2.0)


def test_ties_and_leaning():
    leaning = [Scores((math.log(0.8), math.log(0.2)))] * 2  # always prefers the first: nothing is learned
    first, second = Pairwise().judge(ASKED, (GOOD, POOR), leaning)
    assert first.value == second.value == pytest.approx(0.5) and "+0.30" in first.detail
    near = [Scores((math.log(0.52), math.log(0.48))), Scores((math.log(0.48), math.log(0.52)))]
    assert Pairwise().judge(ASKED, (GOOD, POOR), near)[0].value == pytest.approx(0.52)
    assert Pairwise(tie=0.05).judge(ASKED, (GOOD, POOR), near)[0].value == 0.5
    assert Pairwise().judge(ASKED, (GOOD,), ())[0].value is None  # nobody to be compared with
    (a, b, c) = Pairwise().judge(ASKED, (GOOD, POOR, GOOD), near)
    assert a == c != b


@pytest.mark.parametrize(("num", "rivals", "wanted"), [(2, None, 1), (3, None, 3), (4, None, 6), (5, None, 10), (6, 2, 6), (6, 4, 12), (3, 8, 3)])
def test_every_answer_meets_its_rivals(num, rivals, wanted):
    pairs = Pairwise(rivals=rivals)._pairs(num)
    assert len(set(pairs)) == len(pairs) == wanted and all(i < j for i, j in pairs)
    met = [sum(i in pair for pair in pairs) for i in range(num)]
    assert len(set(met)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pairwise(rivals=3),
        lambda: Pairwise(tie=0.5),
        lambda: YesNo(words=("a", "a")),
        lambda: ProgramAgreement(num=0),
    ],
    ids=range(4),
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField):
        make()


def test_yes_no_reads_the_odds_and_leaves_the_end_out():
    ended = Candidate("42", "42", (5, 6, 9), finish="stop")
    (asked,) = YesNo().asks(ASKED, (ended, ended))
    assert asked.prefix.tokens == (5, 6) and asked.options == ("\nIs this right? Yes", "\nIs this right? No")
    told = YesNo().judge(ASKED, (ended, ended), (Scores((-3.0, -3.0 - math.log(3))),))
    assert [v.value for v in told] == [pytest.approx(0.75)] * 2
    assert YesNo().judge(ASKED, (ended,), (Scores((-math.inf, -math.inf)),))[0].value is None


def reply(code):
    return Extension(Prefix(ASKED, text=f"```python\n{code}\n```", finish="stop"), "stop")


def test_programs_vote_for_what_they_print():
    verifier, answers = ProgramAgreement(num=4), [reply(c) for c in ("print(6 * 7)", "x = 42.0\nprint('so', x)", "print(41)", "1 / 0")]
    candidates = tuple(Candidate(t, Number().read(t)) for t in ("so 42", "41", "no idea"))
    told = verifier.judge(ASKED, candidates, answers)
    assert [v.value for v in told] == [pytest.approx(2 / 3), pytest.approx(1 / 3), None]
    assert verifier.judge(ASKED, candidates, [reply("while True: pass")] * 0)[0].value is None
    assert len({a.seed for a in verifier.asks(ASKED, candidates)}) == 4
    assert verifier.asks(ASKED, candidates[2:]) == ()
    assert all(v.value is None for v in verifier.judge(ASKED, candidates, [spent_answer(a) for a in verifier.asks(ASKED, candidates)]))


class Numbered(YesNo):
    """Wrong: what it asks begins with a number of its own, so no two of its prompts share their beginning."""

    def asks(self, prompt, candidates):
        for asked in super().asks(prompt, candidates):
            messages = (("system", f"Verdict {len(asked.prefix.tokens)}"), *prompt.messages)
            yield replace(asked, prefix=replace(asked.prefix, prompt=replace(prompt, messages=messages)))


def judged_by_step(path: Path, verifier) -> tuple[float, float, dict]:
    """Verifier tokens per branch, as the engine computed and as the ledger booked them, and what the law must know."""
    process, num = open_model(path), 4
    prompt = replace(task("rg:chain_sum").items("dev")[0].prompt, max_tokens=48)
    strategy = ParticleFilter(num=num, resampler=systematic, verifier=verifier, until=("\n",), ess_below=0.0)
    result = ask(process, prompt, strategy, Budget(), seed=1)
    assert all(c.verdicts for c in result.candidates)
    prompt_len = process.prompt_len(prompt)
    sizes = {
        "prompt_len": prompt_len,
        "answer_len": sum(len(c.tokens) for c in result.candidates) / num,
        "num_steps": sum(c.text.count("\n") + 1 for c in result.candidates) / num,
    }
    return (process.totals.prompt_tokens - prompt_len) / num, result.cost.verifier_tokens / num, sizes


def test_a_judge_in_place_is_incremental_on_the_real_engine(smollm2_path: Path):
    """In what the engine computes and in what the ledger books."""
    computed, booked, sizes = judged_by_step(smollm2_path, YesNo())
    laws_verifier.law_scoring_is_incremental(computed, **sizes)
    laws_verifier.law_scoring_is_incremental(booked, **sizes)
    assert computed < 0.5 * sizes["prompt_len"]  # it reads the question's own tokens, not a copy


@pytest.mark.parametrize("verifier", (PTrue(), ValuePrompt()), ids=lambda v: v.name)
def test_a_judge_with_a_prompt_of_its_own_is_incremental_on_the_real_engine(verifier, smollm2_path: Path):
    """The question and what is written so far stand first in its prompts, so the prefix tree has them already."""
    computed, _, sizes = judged_by_step(smollm2_path, verifier)
    laws_verifier.law_scoring_is_incremental(computed, **sizes)


def test_a_judge_whose_prompts_share_nothing_is_caught(smollm2_path: Path):
    computed, _, sizes = judged_by_step(smollm2_path, Numbered())
    with pytest.raises(AssertionError, match="verifier tokens per branch"):
        laws_verifier.law_scoring_is_incremental(computed, **sizes)
