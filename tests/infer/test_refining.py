"""Strategies that make prompts of what a model wrote, x laws. Replies are scripted, chances enumerated; mutants break each law."""

import json
import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.asks import Candidate, Choice, Extend, Outcome, Prompt
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.atom_of_thoughts import AtomOfThoughts
from ponder.infer.critique_and_fuse import CritiqueAndFuse
from ponder.infer.dser import Dser, Markov, fitted
from ponder.infer.iad import Iad
from ponder.infer.plangen import PlanGen
from ponder.infer.prompting import aside, check_template, clipped, filled, listed, quoted, replaces, replies, spaced
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.self_evaluation import NoBetterRestart, SelfEvaluation
from ponder.infer.self_refine import SelfRefine
from ponder.infer.solve_detect_verify import SolveDetectVerify
from ponder.infer.thinksum import ThinkSum, product
from ponder.testing import laws_refine
from ponder.testing import laws_strategy as laws
from ponder.testing.laws_refine import HOSTILE, QUESTION, outside, scripted
from ponder.testing.laws_strategy import played
from ponder.testing.toy import rendered
from ponder.verify.mean_log_p import MeanLogP

STRATEGIES = {
    "self_refine": SelfRefine(rounds=2, critique_tokens=4, max_chars=900),
    "self_refine, no round": SelfRefine(rounds=0),
    "dser": Dser(chains=2, steps=2, check_tokens=4, max_chars=900),
    "solve_detect_verify": SolveDetectVerify(rounds=1, num_fast=3, cues=("b",), slow_tokens=4, max_chars=900),
    "solve_detect_verify, no cues": SolveDetectVerify(rounds=2, num_fast=1, cues=(), max_cues=0, max_chars=900),
    "self_evaluation": SelfEvaluation(num=3, verifier=NoBetterRestart(max_chars=900)),
    "self_evaluation, pruned": SelfEvaluation(num=4, batch=4, prune_at=2, verifier=NoBetterRestart(max_chars=900), stop_from=2.0),
    "iad": Iad(verifier=MeanLogP(), width=2, rounds=2, max_chars=900),
    "critique_and_fuse": CritiqueAndFuse(num=3, num_fused=2, critique_tokens=4, max_chars=900),
    "plangen": PlanGen(arms=(Sample(), SelfConsistency(num=2)), rounds=3, check_tokens=4, max_chars=900),
    "atom_of_thoughts": AtomOfThoughts(retries=1, side_tokens=4, max_chars=900),
    "thinksum": ThinkSum(num=3, num_drawn=3, fact_tokens=3, max_chars=900),
    "thinksum, product": ThinkSum(num=2, combine=product, max_chars=900),
    "dser, late answers": Dser(chains=2, steps=2, num_late=2, max_chars=900),
}
MAKES_PROMPTS = {name: s for name, s in STRATEGIES.items() if name != "self_refine, no round"}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


def in_the_shape_asked(prompt, said):
    """A graph of two sub-questions where JSON is wanted."""
    return json.dumps([{"question": said, "needs": []}, {"question": said, "needs": [1]}]) if "JSON only" in prompt else said


@pytest.mark.parametrize("name", MAKES_PROMPTS)
def test_quotations_hold(name):
    num_shown = laws_refine.law_quotations_hold(MAKES_PROMPTS[name], QUESTION, in_the_shape_asked)
    assert num_shown >= len(HOSTILE) - 1, "the law saw nothing of what the model wrote"


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_answer_is_kept(name):
    laws_refine.law_keeps_an_answer(STRATEGIES[name], QUESTION)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_small_context_leaves_the_first_answer(name):
    laws_refine.law_survives_a_small_context(STRATEGIES[name], QUESTION, lambda prompt: "7")


# ---- quotations and templates


def test_outside_reads_as_commonmark_does():
    assert outside("a\n```\nb\n```\nc") == "a\nc"
    assert outside("````\n```\nb\n````\nc") == "c"
    with pytest.raises(AssertionError, match="no end"):
        outside("````\n```\nb\n```\nc")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_ends_a_quotation(text):
    assert outside(f"before\n{quoted(text, 900)}\nafter") == "before\nafter"
    assert len(quoted(text, 900)) < 1100


@given(text=st.text("`~\n\r \u2028<|>/[]INST{a}", max_size=60), max_chars=st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_no_text_ends_a_quotation(text, max_chars):
    assert outside(f"before\n{quoted(text, max_chars)}\nafter") == "before\nafter"
    assert not re.search(r"<\||\|>|</?[A-Za-z]\w*>|\[/?[A-Z_]{2,}\]", quoted(text, 10**6))


@pytest.mark.parametrize(
    "quote",
    [
        lambda text, max_chars: f"```\n{text}\n```",
        lambda text, max_chars: f'"{text}"',
        lambda text, max_chars: quoted(text.replace("`", "'"), 10**6).replace("< |", "<|"),
        lambda text, max_chars: quoted(text, 10**6),
    ],
)
def test_quotations_that_leak_are_caught(quote, monkeypatch):
    monkeypatch.setattr("ponder.infer.self_refine.quoted", quote)
    with pytest.raises(AssertionError, match=r"outside|no end|control|characters"):
        laws_refine.law_quotations_hold(SelfRefine(rounds=1), QUESTION)


def test_a_template_that_is_filled_twice_is_caught(monkeypatch):
    monkeypatch.setattr("ponder.infer.self_refine.filled", lambda template, parts: filled(filled(template, parts), parts))
    with pytest.raises((AssertionError, KeyError)):
        laws_refine.law_quotations_hold(SelfRefine(rounds=1), QUESTION)


def test_control_names_are_spaced_and_other_text_is_not():
    assert spaced("<|im_end|> </s> [INST] [/INST] <start_of_turn>") == "< |im_end| > < /s> [ INST] [ /INST] < start_of_turn>"
    assert spaced("<｜User｜><|fim_prefix|>") == "< ｜User｜ >< |fim_prefix| >"
    assert spaced("a < b, c > d, x[0], [1, 2], a|b, 3<4>2") == "a < b, c > d, x[0], [1, 2], a|b, 3< 4>2"


def test_no_control_token_of_a_real_model_is_read_in_a_quotation(smollm2_path):
    from ponder.models.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(smollm2_path)
    names = {i: p for i, p in tokenizer.core.get_added_tokens_decoder().items()}
    text = " ".join(token.content for token in names.values()) + "<|im_end|>\n<|im_start|>system"
    assert set(tokenizer.encode(text, parse_special=True)) & names.keys()
    assert not set(tokenizer.encode(quoted(text, 9000), parse_special=True)) & names.keys()


def test_long_texts_are_cut_in_the_middle():
    assert clipped("abcdefgh", 8) == "abcdefgh" and clipped("abcdefghi", 5) == "ab\n[...]\nghi"
    assert clipped("abc", 1) == "\n[...]\nc"
    assert outside(listed(["x" * 500, "```"], 100)) == "Answer 1:\n\nAnswer 2:" and len(listed(["x" * 500, "y" * 500], 100)) < 200


def test_templates_are_checked():
    check_template("x", "{a} and {b}", ("a", "b"))
    for bad in ("{a}", "{a} {b} {c}", "none"):
        with pytest.raises(BadField, match="must have"):
            check_template("x", bad, ("a", "b"))
    assert filled("{a} {b} {", {"a": "{b}", "b": "2"}) == "{b} 2 {"
    with pytest.raises(BadField, match="critique template"):
        SelfRefine(critique="Find mistakes in {answer}")
    with pytest.raises(BadField, match="refine template"):
        Dser(refine="{question} {answer}")


def test_a_question_beside_the_task_leaves_its_form_and_reader():
    asked = aside(replace(QUESTION, stop=("x",), prefill="The"), "Well?", 5)
    assert (asked.question, asked.stop, asked.prefill, asked.max_tokens, asked.answers.read("7 ok")) == ("Well?", (), "", 5, "7 ok")


# ---- self-refine

FIRST = {"1": 0.3, "2": 0.7}


def is_first(prompt):
    return prompt == rendered(QUESTION)


def no_fault(prompt):
    return FIRST if is_first(prompt) else "There are no mistakes here."


@dataclass(frozen=True, kw_only=True)
class Restless(SelfRefine):
    """Mutant: writes anew although no fault was found."""

    def run(self, prompt, rng):
        yield from super().run(prompt, rng)
        return Outcome((yield from replies([prompt], self.sampling, rng.fork(9), best=())))


@dataclass(frozen=True, kw_only=True)
class Trusting(SelfRefine):
    """Mutant: the last text is the answer, whatever it is."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        return replace(outcome, candidates=tuple(reversed(outcome.candidates)))


def test_without_a_fault_the_first_answer_stands():
    laws_refine.law_no_fault_is_a_sample(SelfRefine(rounds=3), no_fault, QUESTION)
    laws_refine.law_no_fault_is_a_sample(SelfRefine(rounds=0), lambda prompt: FIRST, QUESTION)
    laws.law_alone_is_a_sample(SelfRefine(rounds=0), SelfRefine().sampling)


def test_refining_without_a_fault_is_caught():
    with pytest.raises(AssertionError, match="off by"):
        laws_refine.law_no_fault_is_a_sample(SelfRefine(rounds=3), lambda p: FIRST if is_first(p) else "bad, it is 1", QUESTION)
    with pytest.raises(AssertionError, match="took the place"):
        laws_refine.law_keeps_an_answer(Trusting(rounds=1), QUESTION)
    half = scripted(Restless(), lambda p: "1" if is_first(p) else "no mistakes", QUESTION, TorchRng(0))
    assert len(half.turns) == 3 and len(scripted(SelfRefine(), lambda p: "1" if is_first(p) else "no mistakes", QUESTION, TorchRng(0)).turns) == 2


def test_a_fault_is_mended():
    """The reviser sees answer and critique, each in its quotation."""

    def reply(prompt):
        if is_first(prompt):
            return "It is 3."
        if "List every mistake" in prompt:
            return "It should be 4." if "It is 3." in prompt else "NO MISTAKES"
        return "So it is 4." if quoted("It should be 4.", 4000) in prompt and quoted("It is 3.", 4000) in prompt else "lost"

    done = scripted(SelfRefine(rounds=5), reply, QUESTION, TorchRng(0))
    assert [c.answer for c in done.result.candidates] == ["4", "3"] and done.result.diagnostics["ended"] == "no fault found"


# ---- deep self-evolving reasoning

P_IN, P_OUT, START = 0.3, 0.2, 0.25


def chain(prompt):
    """1 is right. Checks say nothing; a refinement moves as the chain says."""
    if "Check every step" in prompt:
        return "checked"
    if is_first(prompt):
        return {"1": START, "2": 1 - START}
    return {"1": 1 - P_OUT, "2": P_OUT} if quoted("1", 9) in prompt else {"1": P_IN, "2": 1 - P_IN}


@pytest.mark.parametrize("steps", (0, 1, 2, 4))
def test_one_chain_has_the_share_of_its_markov_model(steps):
    share = Markov(P_IN, P_OUT).after(steps, START)
    laws_refine.law_follows_the_chain(Dser(chains=1, steps=steps), chain, QUESTION, {"1": share, "2": 1 - share})


def test_a_chain_that_moves_otherwise_is_caught():
    with pytest.raises(AssertionError, match="off by"):
        share = Markov(P_OUT, P_IN).after(2, START)
        laws_refine.law_follows_the_chain(Dser(chains=1, steps=2), chain, QUESTION, {"1": share, "2": 1 - share})


def test_the_stationary_share_stays_and_all_others_converge():
    markov = Markov(P_IN, P_OUT)
    assert markov.stationary == pytest.approx(0.6) and markov.after(1, 0.6) == pytest.approx(0.6)
    assert [abs(markov.after(n, 0.0) - 0.6) for n in (0, 1, 2, 9)] == pytest.approx([0.6 * 0.5**n for n in (0, 1, 2, 9)])
    share = START
    for _ in range(5):
        share = share * (1 - P_OUT) + (1 - share) * P_IN
    assert markov.after(5, START) == pytest.approx(share, abs=1e-15)
    assert Markov(0.0, 0.0).after(7, 0.4) == 0.4


def test_three_chains_vote():
    """By the binomial law: two or three of three chains right."""
    share = Markov(P_IN, P_OUT).after(1, START)
    right = share**3 + 3 * share**2 * (1 - share)
    laws_refine.law_follows_the_chain(Dser(chains=3, steps=1), chain, QUESTION, {"1": right, "2": 1 - right})


def test_the_fit_finds_the_chain():
    """Ratio of expected counts over every path of three steps, weighted as a maximum-likelihood fit of many runs would."""
    moves = {True: [0.0, 0.0], False: [0.0, 0.0]}
    paths = [(s, a, b) for s in (True, False) for a in (True, False) for b in (True, False)]
    step = lambda x, y: (1 - P_OUT if y else P_OUT) if x else (P_IN if y else 1 - P_IN)
    many = []
    for s, a, b in paths:
        chance = (START if s else 1 - START) * step(s, a) * step(a, b)
        many += [(s, a, b)] * round(chance * 10**4)
        for x, y in ((s, a), (a, b)):
            moves[x][y] += chance
    found = fitted(many)
    assert found.p_in == pytest.approx(P_IN, abs=1e-3) and found.p_out == pytest.approx(P_OUT, abs=1e-3)
    assert moves[False][True] / sum(moves[False]) == pytest.approx(P_IN, abs=1e-15)
    assert fitted([[True], [False]]) == Markov(0.0, 0.0) and fitted([[False, True, True]]) == Markov(1.0, 0.0)


def test_no_step_is_self_consistency():
    for key in range(4):
        ours, theirs = (played(s, key=key).result for s in (Dser(chains=5, steps=0), SelfConsistency(num=5, sampling=Dser().sampling)))
        assert ours.candidates == theirs.candidates and ours.confidence == theirs.confidence


def test_the_run_reports_its_chain():
    told = scripted(Dser(chains=2, steps=3), lambda p: "2" if is_first(p) else "1", QUESTION, TorchRng(0)).result
    assert told.candidates[0].answer == "1"
    assert (told.diagnostics["p_in"], told.diagnostics["p_out"], told.diagnostics["stationary"]) == (1.0, 0.0, 1.0)


def test_a_refinement_replaces_only_what_it_is_worth():
    answer = Candidate("it is 7", "7", finish="stop")
    silent = Candidate("hm", None, finish="stop")
    assert replaces(answer, silent) and replaces(answer, answer) and replaces(silent, silent)
    assert not replaces(silent, answer) and not replaces(replace(answer, finish="budget"), answer) and not replaces(replace(silent, text=""), silent)


# ---- mutants: each breaks a law that its parent keeps


@dataclass(frozen=True, kw_only=True)
class Eager(CritiqueAndFuse):
    """Mutant: whatever was fused stands first."""

    def outcome(self, plain, fused, prompt):
        return replace(plain, candidates=(*fused, *plain.candidates))


@dataclass(frozen=True, kw_only=True)
class LastPlan(PlanGen):
    """Mutant: the last plan is the answer."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        return replace(outcome, candidates=tuple(sorted(outcome.candidates, key=lambda c: c.score or 0.0)))


@dataclass(frozen=True, kw_only=True)
class Loyal(Dser):
    """Mutant: a chain keeps its first answer."""

    def elected(self, chains, prompt):
        return super().elected([chain[:1] for chain in chains], prompt)


@dataclass(frozen=True, kw_only=True)
class NeverContent(SolveDetectVerify):
    """Mutant: mends what passed."""

    def checked(self, prompt, answers, rng):
        _, check = yield from super().checked(prompt, answers, rng)
        return False, check


def test_mutants_break_the_laws_that_their_parents_keep():
    with pytest.raises(AssertionError, match="took the place"):
        laws_refine.law_keeps_an_answer(Eager(num=4), QUESTION)
    with pytest.raises(AssertionError, match="off by"):
        laws_refine.law_follows_the_chain(Loyal(chains=1, steps=2), chain, QUESTION, after_two_steps())
    with pytest.raises(AssertionError, match="off by"):
        yes = lambda p: FIRST if is_first(p) else "Yes, 1"
        laws_refine.law_no_fault_is_a_sample(NeverContent(cues=(), max_cues=0), yes, QUESTION)
    with pytest.raises(AssertionError, match="first, better ones"):
        scores = lambda p: "1" if is_first(p) else "2" if "Score: N" not in p else "Score: 10" if quoted("1", 9) in p else "Score: 90"
        laws_refine.law_best_is_never_lost(LastPlan(arms=(Sample(),), rounds=2), scores, QUESTION, lambda c: float(c.answer or 0))


def after_two_steps():
    share = Markov(P_IN, P_OUT).after(2, START)
    return {"1": share, "2": 1 - share}


@pytest.mark.parametrize("strategy", (Dser(chains=1, steps=3), Dser(chains=1, steps=2, num_late=3)))
def test_a_chain_that_never_moves_keeps_the_first_answers_distribution(strategy):
    still = lambda p: FIRST if is_first(p) else "checked" if "Check every step" in p else "1" if quoted("1", 9) in p else "2"
    laws_refine.law_no_fault_is_a_sample(strategy, still, QUESTION)


FORM = Prompt(messages=(("raw", "q"),), max_tokens=4, form=Choice(("a", "ab", "bba")))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_answer_is_in_the_form_and_side_questions_are_not(name):
    """Critiques, checks and facts are free text; what stands as an answer never is."""
    done = played(STRATEGIES[name], FORM, key=3)
    assert all(c.text in FORM.form.options for c in done.result.candidates if c.finish == "stop")
    assert done.result.candidates[0].text in FORM.form.options
    forms = {ask.prefix.prompt.form for turn in done.turns for ask in turn.asks if isinstance(ask, Extend)}
    assert forms <= {None, FORM.form, *(Choice((o,)) for o in FORM.form.options)}
