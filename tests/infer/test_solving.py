"""What single strategies make of known replies: detection, checks, plans, atoms. The laws that all share are in test_refining."""

import json
import math
import re
from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import ABSTAIN, Choice, Verdict
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.atom_of_thoughts import AtomOfThoughts, depth, read_atoms
from ponder.infer.best_of_n import BestOfN
from ponder.infer.critique_and_fuse import CritiqueAndFuse
from ponder.infer.iad import Iad
from ponder.infer.plangen import PlanGen, chosen, read_score
from ponder.infer.prompting import chance_of_first, quoted
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.solve_detect_verify import SolveDetectVerify, says_yes
from ponder.infer.thinksum import ThinkSum, mixture, product
from ponder.testing import laws_refine
from ponder.testing import laws_strategy as laws
from ponder.testing.laws_refine import QUESTION
from ponder.testing.laws_strategy import played
from ponder.testing.run import answer_all
from ponder.testing.scripted import ScriptedProcess
from ponder.testing.toy import rendered
from ponder.verify.mean_log_p import MeanLogP

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


# ---- iterative agent decoding


@dataclass(frozen=True)
class Digit:
    """A verifier that likes large digits, and says so."""

    name: str = "digit"

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        return tuple(Verdict(float(c.answer), "score", f"{c.answer} of 9") if c.answer else ABSTAIN for c in candidates)


def value(c):
    return float(c.answer or -1)


def climbing(prompt):
    """One more than the best answer shown; 3 or 1 at first."""
    if is_first(prompt):
        return {"3": 0.5, "1": 0.5}
    best = int(prompt.split("The best answer so far:\n```\n")[1][0])
    return {str(min(9, best + 1)): 0.5, "0": 0.5}


def test_iad_shows_best_and_worst_with_what_was_said():
    result, asked = run(Iad(verifier=Digit(), width=2, rounds=1), lambda p: climbing(p), key=1)
    assert {c.answer for c in result.candidates} >= {"1", "3"}, "take another key: both first answers should be seen"
    (improve, _) = [p for p in asked if not is_first(p)]
    order = [improve.index(quoted(text, 99)) for text in ("3", "score 3\n3 of 9", "1", "score 1\n1 of 9")]
    assert order == sorted(order)


@pytest.mark.parametrize("width", (1, 3))
def test_iad_never_loses_its_best(width):
    laws_refine.law_best_is_never_lost(Iad(verifier=Digit(), width=width, rounds=4), climbing, QUESTION, value)


@dataclass(frozen=True, kw_only=True)
class Forgetful(Iad):
    """Mutant: every round starts from its own answers."""

    def judged(self, prompt, new, ranked):
        return (yield from super().judged(prompt, new, ()))


def test_forgetting_the_best_is_caught():
    with pytest.raises(AssertionError, match="stood first"):
        laws_refine.law_best_is_never_lost(Forgetful(verifier=Digit(), width=1, rounds=6), climbing, QUESTION, value)


def test_iad_without_rounds_is_best_of_n():
    for key in range(4):
        ours, theirs = (played(s, key=key).result.candidates for s in (Iad(verifier=MeanLogP(), rounds=0), BestOfN(num=4, verifier=MeanLogP())))
        assert ours == tuple(sorted(theirs, key=lambda c: c.answer is None))
    laws.law_alone_is_a_sample(Iad(verifier=MeanLogP(), width=1, rounds=0), Iad(verifier=MeanLogP()).sampling)


def test_feedback_pays_on_a_ladder():
    """P(9 within the budget) beside best-of-N at the same number of answers: sampling alone never leaves 1 and 3."""
    result, _ = run(Iad(verifier=Digit(), width=3, rounds=8), climbing, key=2)
    assert int(result.candidates[0].answer) > 6


# ---- critique and fuse


def test_answers_that_agree_are_not_fused():
    result, asked = run(CritiqueAndFuse(num=3), lambda p: "it is 7" if is_first(p) else "8")
    assert len(asked) == 3 and result.candidates[0].answer == "7" and result.confidence == 1.0


def test_fused_answers_vote_before_the_answers():
    fused = lambda p: {"3": 0.5, "1": 0.5} if is_first(p) else "the first is better" if "say in a few sentences" in p else "so 4"
    result, asked = run(CritiqueAndFuse(num=4), fused, key=1)
    assert [c.answer for c in result.candidates[:2]] == ["4", "4"] and len(asked) == 4 + 1 + 2
    assert quoted("the first is better", 99) in asked[-1] and quoted("3", 99) in asked[-1] and quoted("1", 99) in asked[-1]


def test_fused_answers_that_hold_nothing_leave_the_vote():
    result, _ = run(CritiqueAndFuse(num=4), lambda p: {"3": 0.5, "1": 0.5} if is_first(p) else "hm", key=1)
    plain, _ = run(SelfConsistency(num=4), lambda p: {"3": 0.5, "1": 0.5}, key=1)
    assert result.candidates[0].answer == plain.candidates[0].answer and result.diagnostics["num_rejected"] == 2


def test_one_answer_without_fusion_is_a_sample():
    laws.law_alone_is_a_sample(CritiqueAndFuse(num=1, num_fused=0), CritiqueAndFuse().sampling)


# ---- plans


def test_a_plan_that_is_accepted_at_once_is_a_sample():
    plan = PlanGen(arms=(Sample(sampling=PLAIN.sampling),), rounds=3)
    laws_refine.law_no_fault_is_a_sample(plan, lambda p: FIRST if is_first(p) else "Score: 100", QUESTION)
    with pytest.raises(AssertionError, match="off by"):
        laws_refine.law_no_fault_is_a_sample(plan, lambda p: FIRST if is_first(p) else "1. Score: 94", QUESTION)


def planned(prompt):
    """Each answer is the number of the last one plus two, and is scored ten times itself."""
    if is_first(prompt):
        return "1"
    if "List every constraint" in prompt:
        return "odd numbers"
    answer = int(re.findall(r"answer:\n```\n(\d)", prompt)[0])
    return f"wrong. Score: {10 * answer}" if 'line "Score: N"' in prompt else str(min(9, answer + 2))


def test_a_plan_climbs_by_its_feedback():
    result, asked = run(PlanGen(arms=(Sample(),), rounds=4), planned)
    assert [c.answer for c in result.candidates] == ["7", "5", "3", "1"]
    assert all(quoted("odd numbers", 99) in p for p in asked if not is_first(p) and "List every constraint" not in p)
    assert sum("List every constraint" in p for p in asked) == 1
    laws_refine.law_best_is_never_lost(PlanGen(arms=(Sample(),), rounds=5), planned, QUESTION, value)


def test_arms_are_tried_once_each_and_then_by_their_bound():
    assert [chosen(r, 0.5) for r in ([[], []], [[0.9], []], [[0.9], [0.2]], [[0.9], [0.9]])] == [0, 1, 0, 0]
    rewards = [[0.9], [0.2]]
    for _ in range(40):  # rewards of each arm stay what they are
        arm = chosen(rewards, 0.0)
        rewards[arm].append(rewards[arm][0])
    pulls = list(map(len, rewards))
    bound = lambda i: rewards[i][0] + math.sqrt(2 * math.log(sum(pulls) + 1) / pulls[i])
    assert pulls[0] > pulls[1] > 1 and abs(bound(0) - bound(1)) < 0.3, "the bounds of all arms are kept level"


def test_a_score_is_read_with_care():
    assert [read_score(t) for t in ("Score: 95", "3 of 4. Score: -20", "Score: 1000000000000", "none", "")] == [95.0, -20.0, 100.0, None, None]


# ---- atoms


def graph(*needs):
    return json.dumps([{"question": f"part {i}?", "needs": list(n)} for i, n in enumerate(needs, 1)])


def test_a_question_that_is_an_atom_keeps_its_first_answer():
    for said in (graph([]), graph([], []), "no JSON", '[{"question": "x", "needs": [1]}]', "[", "[1, 2]", '[{"question": 3, "needs": []}]'):
        laws_refine.law_no_fault_is_a_sample(AtomOfThoughts(), lambda p, said=said: FIRST if is_first(p) else said, QUESTION)


def test_depth_and_reading_of_graphs():
    assert [depth(read_atoms(graph(*n))) for n in ((), ([],), ([], []), ([], [1]), ([], [1], [1], [2, 3]))] == [0, 1, 1, 2, 3]
    assert read_atoms("Sure:\n" + graph([], [1]) + "\nDone.")[1].needs == (1,)
    for bad in (graph([1]), graph([], [2]), graph([], [0]), graph([], [True]), '[{"question": " ", "needs": []}]', "[" * 10_000):
        assert read_atoms(bad) == ()


def chained(prompt):
    """The question is contracted twice; each smaller one is answered 8."""
    if is_first(prompt):
        return "3"
    if "JSON only" in prompt:
        return graph([]) if "SMALLER TWICE" in prompt else graph([], [1])
    if "Write one shorter question" in prompt:
        return "SMALLER TWICE" if "SMALLER" in prompt else "SMALLER"
    return "5" if "part 1?" in prompt else "8"


def test_a_chain_of_questions_is_a_markov_chain():
    """After a contraction no prompt holds the question before it, and sub-answers stand in the prompt that contracts."""
    result, asked = run(AtomOfThoughts(), chained)
    assert [c.answer for c in result.candidates] == ["8", "8", "3"] and result.diagnostics["depths"] == [2, 2, 1]
    first = next(i for i, p in enumerate(asked) if "SMALLER" in p)
    assert not any(QUESTION.question in p for p in asked[first:])
    assert all("part 1?" in p and "5" in p for p in asked if "Write one shorter question" in p)


def test_a_tie_is_judged():
    """3 and 8 have one vote each; the judge says the second that it was shown."""
    judged = lambda p: "Number 2." if "Reply with its number" in p else chained(p)
    result, asked = run(AtomOfThoughts(max_depth=1), judged)
    shown = [a for a in ("3", "8") if quoted(a, 99) in asked[-1]]
    assert len(shown) == 2 and asked[-1].index(quoted(result.candidates[0].answer, 99)) > asked[-1].index("Answer 2")
    silent, _ = run(AtomOfThoughts(max_depth=1), lambda p: "hm" if "Reply with its number" in p else chained(p))
    assert silent.candidates[0].answer != result.candidates[0].answer


# ---- think, then sum

OPTIONS = ("yes", "no", "so")
CLOSED = replace(QUESTION, form=Choice(OPTIONS))


def believing(prompt, option):
    """Without a fact: no. With fact A: yes, a little. With B: so, strongly."""
    table = (0.1, 0.2, 0.7) if "fact B" in prompt else (0.5, 0.3, 0.2) if "fact A" in prompt else (0.3, 0.6, 0.1)
    return math.log(table[OPTIONS.index(option)]) - 7.0


def think(strategy, facts):
    facts = iter(facts)

    def reply(prompt):
        return next(facts) if "State in one sentence" in prompt else "unused"

    process = ScriptedProcess(reply, score=believing)
    return answer_all(strategy.run(CLOSED, TorchRng(0)), process).result


@pytest.mark.parametrize(
    ("combine", "facts", "wanted"),
    [
        (mixture, [], (0.3, 0.6, 0.1)),
        (mixture, ["fact A", "fact B"], (0.3, 1.1 / 3, 1.0 / 3)),
        (product, ["fact A", "fact B"], (0.015 / 0.065, 0.036 / 0.065, 0.014 / 0.065)),
        (mixture, ["fact A", "fact A"], (0.4, 0.45, 0.15)),  # a fact that is recalled twice counts once
    ],
)
def test_beliefs_are_summed_outside_the_model(combine, facts, wanted):
    result = think(ThinkSum(num=len(facts), combine=combine), facts)
    assert result.diagnostics["belief"] == pytest.approx(dict(zip(OPTIONS, wanted, strict=True)), abs=1e-12)
    assert result.candidates[0].text == max(zip(wanted, OPTIONS, strict=True))[1] and result.confidence == pytest.approx(max(wanted))


def test_options_that_are_not_named_are_drawn():
    result, _asked = run(ThinkSum(num=0, num_drawn=8), lambda p: {"3": 0.5, "4": 0.5}, score=lambda p, o: -float(o))
    assert result.candidates[0].answer == "3" and result.diagnostics["belief"] == pytest.approx({"3": 1 / (1 + math.exp(-1)), "4": 1 / (1 + math.e)})


@pytest.mark.parametrize("combine", (mixture, product))
def test_combinations_are_beliefs(combine):
    rows = [[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]]
    assert sum(combine(rows)) == pytest.approx(1.0) and combine(rows[:1]) == pytest.approx(rows[0])
    assert combine([row[::-1] for row in rows]) == pytest.approx(combine(rows)[::-1])
    assert combine(rows[::-1]) == pytest.approx(combine(rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SolveDetectVerify(agree_from=0.3),
        lambda: SolveDetectVerify(num_fast=0),
        lambda: SolveDetectVerify(mend="{question}"),
        lambda: Iad(verifier=Digit(), width=0),
        lambda: Iad(verifier=Digit(), improve="{best}"),
        lambda: CritiqueAndFuse(num=0),
        lambda: CritiqueAndFuse(fuse="{answers}"),
        lambda: PlanGen(arms=()),
        lambda: PlanGen(arms=(Sample(),), score="{answer}"),
        lambda: AtomOfThoughts(retries=-1),
        lambda: AtomOfThoughts(judge="{question}"),
        lambda: ThinkSum(num=-1),
        lambda: ThinkSum(use="{fact}"),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField, match="must"):
        make()
