"""Which of several answers is taken: by the model's own estimate, or by least risk. Distributions by enumeration."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import Candidate, Extend, Prompt, Sampling, Scores, Verdict
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.core.votes import one_each, voted
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.minimum_risk import MinimumRisk, by_utility, gram_f1, overlap, same_answer
from ponder.infer.self_evaluation import NoBetterRestart, SelfEvaluation
from ponder.infer.until_accepted import Odds, UntilAccepted
from ponder.testing import laws_strategy as laws
from ponder.testing.exact import difference
from ponder.testing.laws_refine import QUESTION
from ponder.testing.laws_strategy import played
from ponder.testing.laws_voting import ONE_TOKEN
from ponder.testing.run import answer_all
from ponder.testing.scripted import ScriptedProcess
from ponder.testing.toy import ToyLM, ToyProcess
from ponder.testing.verifiers import Counting
from ponder.verify.answers import Number

STRATEGIES = {
    "self_evaluation": SelfEvaluation(num=3, verifier=Counting("a")),
    "until_accepted": UntilAccepted(num=3, verifier=Counting("a")),
    "until_accepted, by batches": UntilAccepted(num=6, batch=3, verifier=Counting("a"), accept_from=9.0),
    "minimum_risk": MinimumRisk(num=5),
    "minimum_risk, overlap": MinimumRisk(num=5, utility=overlap),
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


# ---- the model's own estimate

STEADY_SAMPLING = Sampling(temperature=0.7)
LIKES_A = Counting("a")
STEADY = SelfEvaluation(num=3, cold=0.8, hot=0.8, stop_from=math.inf, verifier=LIKES_A)


def test_without_stopping_it_is_best_of_n():
    for key in range(6):
        ours = played(STEADY, key=key).result.candidates
        theirs = played(BestOfN(num=3, verifier=LIKES_A), key=key).result.candidates
        assert ours == theirs


def model(a):
    return ToyLM("ab", ((a, 1 - a, 0.0), (0.3, 0.3, 0.4), (0.3, 0.3, 0.4)))


@pytest.mark.parametrize("a", (0.2, 0.5, 0.9))
def test_it_stops_at_the_first_good_answer(a):
    """P(good) = 1 - (1 - p)^n; draws are geometric, cut at n: (1 - (1 - p)^n) / p on average."""
    eager = replace(STEADY, cold=1.0, hot=1.0, stop_from=1.0)
    found = laws.enumerated(eager, lambda o: {(o.candidates[0].answer, o.diagnostics["num_drawn"]): 1.0}, model(a), ONE_TOKEN).measure
    wanted = {("a", n): a * (1 - a) ** (n - 1) for n in (1, 2, 3)} | {("b", 3): (1 - a) ** 3}
    assert difference(found, wanted) < 1e-12
    assert sum(n * p for (_, n), p in found.items()) == pytest.approx((1 - (1 - a) ** 3) / a, abs=1e-12)


def test_a_judge_that_is_always_content_takes_the_first_answer():
    content = replace(STEADY, cold=0.8, hot=0.8, stop_from=0.0)
    laws.law_alone_is_a_sample(content, BestOfN(num=1, verifier=LIKES_A).sampling)


def test_temperatures_rise():
    heats = [
        ask.sampling.temperature for turn in played(replace(STEADY, num=6, cold=0.1, hot=1.0)).turns for ask in turn.asks if isinstance(ask, Extend)
    ]
    assert heats[0] == pytest.approx(0.1) and heats == sorted(heats) and heats[-1] == pytest.approx(1 - 0.9 * math.exp(-2.5))


@pytest.mark.parametrize("key", range(4))
def test_the_weak_half_is_dropped_and_costs_no_more(key):
    long = Prompt(messages=(("raw", "q"),), max_tokens=24)
    lm = ToyLM("ab", ((0.5, 0.5, 0.0), (0.6, 0.35, 0.05), (0.35, 0.6, 0.05)))
    thinned = replace(STEADY, num=6, batch=6, prune_at=3, keep=0.5)
    whole, half = (answer_all(s.run(long, TorchRng(key)), ToyProcess(lm)) for s in (replace(thinned, prune_at=None), thinned))
    assert half.result.diagnostics["num_pruned"] == 3 and half.cost.generated_tokens < whole.cost.generated_tokens
    counts = {c.text[:3].count("a") for c in half.result.candidates if c.finish != "budget"}, {c.text.count("a") for c in half.result.candidates[3:]}
    assert min(counts[0]) >= max(counts[1]) and all(len(c.tokens) == 3 for c in half.result.candidates[3:])


def test_the_estimate_is_the_chance_of_no():
    (told,) = NoBetterRestart().judge(QUESTION, (Candidate("x", "x"),), [laws_scores(-1.0, -2.0)])
    assert told.value == pytest.approx(1 / (1 + math.exp(-1.0))) and told.kind == "probability"
    assert NoBetterRestart().judge(QUESTION, (Candidate("x", "x"),), [laws_scores()])[0].value is None


def laws_scores(*log_p):
    return Scores(log_p)


# ---- least risk

TEXTS = ("the cat sat on the mat", "a cat sat on the mat", "the cat sat on a mat", "dogs bark at night", "")


def drawn(texts=TEXTS):
    return [Candidate(t, " ".join(t.split()) or None, (i,), log_p=-1.0 - i, finish="stop") for i, t in enumerate(texts)]


@pytest.mark.parametrize("key", range(8))
def test_with_equal_answers_least_risk_is_the_vote(key):
    for prompt in (ONE_TOKEN, laws.LONG):
        outcome = played(MinimumRisk(num=7), prompt, key=key).result
        candidates = sorted(outcome.candidates, key=lambda c: c.tokens)
        elected = voted(candidates, one_each(candidates), prompt).candidates[0]
        assert outcome.candidates[0].answer == elected.answer


def test_risk_by_meaning_is_not_risk_by_spelling():
    """1,000 and 1000.0 agree by the reader; by their characters each stands nearer to 1001 than the readings say."""
    prompt = NUMBERS
    same = [Candidate(t, Number().read(t), finish="stop") for t in ("1,000", "1000.0", "1001")]
    assert same_answer(prompt, same[0], same[1]) == 1.0 and same_answer(prompt, same[1], same[2]) == 0.0
    assert overlap(prompt, same[0], same[2]) > overlap(prompt, same[0], same[1]) / 2 > 0


def test_the_consensus_text_wins():
    texts = ["the cat sat on the mat", "the cat sat on a mat", "a cat sat on the mat", "dogs bark at night"]
    process = ScriptedProcess(lambda p: {t: 0.25 for t in texts})
    outcome = answer_all(MinimumRisk(num=16, utility=overlap).run(QUESTION, TorchRng(1)), process).result
    assert outcome.candidates[0].text != "dogs bark at night" and outcome.candidates[-1].text == "dogs bark at night"


@pytest.mark.parametrize("utility", (same_answer, overlap))
def test_utilities_are_symmetric_and_one_at_home(utility):
    for a, b in itertools.product(drawn(), repeat=2):
        value = utility(QUESTION, a, b)
        assert 0 <= value <= 1 and value == utility(QUESTION, b, a)
        assert value == 1.0 or a != b or a.answer is None


def test_overlap_by_hand():
    assert gram_f1("abab", "abc", 2) == pytest.approx(2 * 1 / (3 + 2)) and gram_f1("a", "b", 3) == 1.0 and gram_f1("ab", "", 1) == 0.0
    ours, theirs = Candidate("Über den Fluss", None), Candidate("über DEN fluss", None)
    assert overlap(QUESTION, ours, theirs) == 1.0


def test_one_hedged_answer_is_greedy_decoding():
    assert played(MinimumRisk(num=1)).result.candidates[0].tokens == played(Greedy()).result.candidates[0].tokens


def test_the_first_answer_is_greedy_and_the_others_ever_hotter():
    heats = [s.temperature for s in MinimumRisk(num=5, cold=0.2, hot=0.8).samplings()]
    assert heats == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [s.temperature for s in MinimumRisk(num=1).samplings()] == [0.0]
    assert [s.temperature for s in MinimumRisk(num=2).samplings()] == [0.0, 0.3]


NUMBERS = replace(QUESTION, answers=Number())
SPELLINGS = ("it is 1,000", "\\boxed{1000}", "so 1000.0!", "it is 1001", "it is 1001")


def least_risk(utility):
    return lambda prompt, candidates: by_utility(prompt, candidates, utility)[0]


def test_answers_count_by_meaning_and_spelling_is_caught():
    laws.law_answers_by_meaning(least_risk(same_answer), NUMBERS, SPELLINGS, "1000")
    with pytest.raises(AssertionError, match="elected '1001'"):
        laws.law_answers_by_meaning(least_risk(overlap), NUMBERS, SPELLINGS, "1000")


# ---- until one is accepted

THREE = ToyLM("abc", ((0.5, 0.2, 0.3, 0.0), *((0.25, 0.25, 0.25, 0.25),) * 3))  # a is right, a and b are accepted, c is rejected
KNOWN = Odds(shares=(1.0,), rates=(0.5,), completeness=1.0, soundness=0.6)
ACCEPTING = UntilAccepted(num=3, verifier=Counting("c"), sampling=Sampling())


@dataclass(frozen=True)
class Accepting(Counting):
    """1 for texts without `what`, else 0."""

    def verdict(self, text):
        return Verdict(float(self.what not in text))


def outcomes(strategy):
    see = lambda o: {(o.candidates[0].answer, o.diagnostics["num_drawn"], o.diagnostics["is_accepted"]): 1.0}
    return laws.enumerated(strategy, see, THREE, ONE_TOKEN).measure


def test_the_accepted_answer_has_the_law_of_the_first_that_passes():
    found = outcomes(replace(ACCEPTING, verifier=Accepting("c")))
    wanted = {("a", k, True): KNOWN.right(k) for k in (1, 2, 3)} | {("b", k, True): KNOWN.wrong(k) for k in (1, 2, 3)} | {("c", 3, False): 0.3**3}
    assert difference(found, wanted) < 1e-12
    assert KNOWN.ceiling() == pytest.approx(0.5 / 0.7) and KNOWN.trust(2) == pytest.approx(0.5 / 0.7)
    draws = sum(k * p for (_, k, _), p in found.items())
    assert draws == pytest.approx(sum(KNOWN.reached(k) for k in (1, 2, 3)), abs=1e-12)


@dataclass(frozen=True, kw_only=True)
class LastOfAll(UntilAccepted):
    """Mutant: takes the best verdict of all, as best-of-n does, and forgets which came first."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        return replace(outcome, candidates=tuple(sorted(outcome.candidates, key=lambda c: c.mean_log_p)))


def test_taking_another_than_the_first_accepted_is_caught():
    eager = replace(ACCEPTING, verifier=Accepting("c"))
    mutant = LastOfAll(num=3, verifier=Accepting("c"), sampling=Sampling())
    assert difference(outcomes(eager), outcomes(mutant)) > 0.01


def test_batches_change_the_cost_and_not_the_answer():
    one, three = ({a: 0.0 for a in "abc"} for _ in range(2))
    for total, batch in ((one, 1), (three, 3)):
        for (answer, _, _), p in outcomes(replace(ACCEPTING, verifier=Accepting("c"), batch=batch)).items():
            total[answer] += p
    assert difference(one, three) < 1e-12


PAPER = Odds(shares=(0.58, 0.42), rates=(0.87, 0.13), completeness=1.0, soundness=0.75)


@pytest.mark.parametrize(("gain", "harm", "cost"), [(1.0, 4.0, 0.0), (1.0, 10.0, 0.0), (1.0, 0.5, 0.02), (1.0, 1.0, 0.05), (1.0, 0.0, 0.0)])
def test_the_most_draws_worth_making_by_brute_force(gain, harm, cost):
    """Every limit's expected value, from the tree of draws of each type of question."""

    def value(limit):
        total = 0.0
        for share, rate in zip(PAPER.shares, PAPER.rates):
            alive = share
            for _ in range(limit):
                total += alive * (gain * rate - harm * 0.25 * (1 - rate) - cost)
                alive *= 0.75 * (1 - rate)
        return total

    best = max(range(13), key=lambda k: (round(value(k), 12), -k))
    assert PAPER.most_worth(gain, harm, cost, 12) == best
    assert UntilAccepted(num=12, verifier=LIKES_A, odds=PAPER, gain=gain, harm=harm, cost=cost).most == max(1, best)


def test_the_papers_example():
    """Where a false positive costs four times what a right answer brings, few draws pay; at ten times none does."""
    assert PAPER.most_worth(1.0, 4.0, 0.0, 60) <= 5 and PAPER.most_worth(1.0, 10.0, 0.0, 60) == 0 and PAPER.most_worth(1.0, 0.0, 0.0, 60) == 60
    weak = replace(PAPER, shares=(0.2, 0.8))
    assert weak.ceiling() < PAPER.ceiling() < replace(PAPER, soundness=0.95).ceiling() < replace(PAPER, soundness=1.0).ceiling() == 1.0


def test_a_verifier_that_accepts_everything_takes_the_first_answer():
    always = UntilAccepted(num=3, verifier=Accepting("?"), sampling=STEADY_SAMPLING)
    laws.law_alone_is_a_sample(always, STEADY_SAMPLING)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UntilAccepted(num=2, batch=3, verifier=LIKES_A),
        lambda: UntilAccepted(num=2, cost=-1.0, verifier=LIKES_A),
        lambda: MinimumRisk(num=0),
        lambda: MinimumRisk(num=3, hot=-1.0),
        lambda: SelfEvaluation(num=2, batch=3),
        lambda: SelfEvaluation(keep=0.0),
        lambda: SelfEvaluation(prune_at=0),
        lambda: SelfEvaluation(rise=0.0),
        lambda: replace(PAPER, rates=(0.5,)),
        lambda: replace(PAPER, shares=(0.5, 0.4)),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField, match="must"):
        make()
