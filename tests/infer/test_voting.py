"""Votes that stop early or are pruned, x laws; the chances by enumeration, beside their closed forms. Mutants break each law."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ponder.core.asks import Candidate, Prompt, TokenLogP, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import TorchRng
from ponder.core.votes import by_path_probability, by_verdict, labels, leading_two, one_each, voted
from ponder.infer.adaptive import Adaptive
from ponder.infer.compute_optimal import ComputeOptimal
from ponder.infer.deepconf import DeepConf, Trace, bottom_groups, confidence, lowest_group, tail_group, whole_mean
from ponder.infer.rpc import Rpc, mixture, pruned, weibull
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.stop.beta_test import BetaTest, leads
from ponder.infer.stop.settled import Settled
from ponder.infer.stop.unanimous_window import UnanimousWindow
from ponder.testing import laws_strategy as laws
from ponder.testing import laws_voting
from ponder.testing.exact import difference
from ponder.testing.laws_strategy import PROMPT, played
from ponder.testing.laws_voting import ONE_TOKEN, law_stops_early
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyLM, ToyProcess
from ponder.testing.verifiers import Seeing
from ponder.verify.answers import Number

NUMBERS = Prompt(messages=(("user", "?"),), answers=Number())
STRATEGIES = {
    "adaptive, beta test": Adaptive(num=5, rule=BetaTest(confidence=0.8)),
    "adaptive, windows": Adaptive(num=6, rule=UnanimousWindow(size=2)),
    "adaptive, settled": Adaptive(num=5, rule=Settled()),
    "compute optimal": ComputeOptimal(arms=(Sample(num=4), Sample(num=2), None), first=3),
    "compute optimal, judged": ComputeOptimal(arms=(Adaptive(num=3, rule=Settled()), None), edges=(2.0,), first=2, verifier=Seeing("a")),
    "compute optimal, one arm": ComputeOptimal(arms=(SelfConsistency(num=3),), edges=(), first=2, is_pooled=False),
    "rpc": Rpc(num=8),
    "deepconf": DeepConf(num=7, num_warm=3, keep=0.5, window=2, top=2, step_tokens=2, share=1.0),
    "deepconf by the tail": DeepConf(num=6, num_warm=3, keep=0.5, window=2, top=2, step_tokens=2, share=1.0, measure=tail_group),
    "deepconf, offline": DeepConf(num=5, num_warm=5, keep=0.6, window=3, top=3),
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


# ---- stop rules

RULES = (BetaTest(), BetaTest(confidence=0.8, batch=3), BetaTest(confidence=0.6), UnanimousWindow(size=2), UnanimousWindow(size=3), Settled())


@dataclass(frozen=True)
class Half:
    """Mutant: asks for more than is left."""

    guarantee, error = Guarantee.BIASED, 0.0

    def more(self, labels, left):
        return 4 if len(labels) < 5 else 0


@dataclass(frozen=True, kw_only=True)
class Hasty(BetaTest):
    """Mutant: 0.75 of the votes after two draws, as a fixed share does, with the Beta test's claim."""

    def more(self, labels, left):
        first, _ = leading_two(labels)
        return 0 if len(labels) >= 2 and first >= 0.75 * len(labels) else min(1, left)


@dataclass(frozen=True, kw_only=True)
class Sliding(UnanimousWindow):
    """Mutant: looks at the last draws wherever they stand, so that it has more than one chance per window."""

    def more(self, labels, left):
        return 0 if len(labels) >= self.size and len(set(labels[-self.size :])) == 1 else min(1, left)


@dataclass(frozen=True)
class Tying(Settled):
    """Mutant: stops where the rest could still tie."""

    def more(self, labels, left):
        first, second = leading_two(labels)
        return 0 if labels and first - second >= left else min(1, left)


@dataclass(frozen=True)
class CountingSilence(Settled):
    """Mutant: draws without an answer count as one answer."""

    def more(self, labels, left):
        return super().more([-1 if x is None else x for x in labels], left)


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_legal(rule):
    laws_voting.law_rule_is_legal(rule)


def test_a_rule_that_wants_too_much_is_caught():
    with pytest.raises(AssertionError, match="wants"):
        laws_voting.law_rule_is_legal(Half())


@pytest.mark.parametrize("rule", RULES)
def test_rules_keep_their_stated_error(rule):
    assert all(laws_voting.law_rule_keeps_its_error(rule, num) >= 0 for num in (1, 4, 10))


@pytest.mark.parametrize("rule", (Hasty(), Tying()))
def test_a_rule_that_understates_its_error_is_caught(rule):
    with pytest.raises(AssertionError, match="another answer"):
        laws_voting.law_rule_keeps_its_error(rule, 10)


@pytest.mark.parametrize(("confidence", "num"), [(0.95, 40), (0.8, 40), (0.99, 40)])
def test_the_beta_test_keeps_its_error_over_many_draws(confidence, num):
    """Counts alone decide, so votes of 40 are a lattice: chance of passing a point without a stop, times that of being overtaken."""
    rule, error = BetaTest(confidence=confidence), 0.0
    alive = {(0, 0): 1.0}
    for total in range(num):
        grown: dict[tuple[int, int], float] = {}
        for (a, b), p in alive.items():
            if rule.more([0] * a + [1] * b, num - total) == 0:
                error += p * laws_voting.overtaken(max(a, b), min(a, b), num - total)
                continue
            for point, chance in (((a + 1, b), (a + 1) / (total + 2)), ((a, b + 1), (b + 1) / (total + 2))):
                grown[point] = grown.get(point, 0.0) + p * chance
        alive = grown
    assert 0.1 * rule.error < error <= rule.error


def test_settled_never_errs():
    laws_voting.law_rule_never_errs(Settled())


@pytest.mark.parametrize("rule", (Tying(), CountingSilence(), BetaTest(confidence=0.8)))
def test_rules_that_may_err_are_caught(rule):
    with pytest.raises(AssertionError, match="draws left"):
        laws_voting.law_rule_never_errs(rule)


def test_the_beta_test_is_the_incomplete_beta_function():
    """P(share > 1/2) by quadrature of the posterior density."""
    for first, second in ((0, 0), (1, 0), (4, 0), (7, 2), (20, 13)):
        grid = [(i + 0.5) / 20000 for i in range(20000)]
        density = [math.exp(first * math.log(p) + second * math.log(1 - p)) for p in grid]
        assert leads(first, second) == pytest.approx(sum(density[10000:]) / sum(density), abs=1e-7)
    assert leads(3, 0) < 0.95 <= leads(4, 0) == 31 / 32


def test_the_error_of_a_window_is_its_integral():
    """For size 2: 2 int q^2 / (q^2 + (1-q)^2) dq over [0, 1/2] = (1 - ln 2) / 2."""
    assert UnanimousWindow(size=2).error == pytest.approx((1 - math.log(2)) / 2, abs=1e-6)
    assert UnanimousWindow(size=1000).error < UnanimousWindow(size=20).error < UnanimousWindow(size=3).error


def model(a, b):
    """Answers "a" and "b" with these probabilities, and no answer with what is left."""
    return ToyLM("ab", ((a, b, 1 - a - b), (0.3, 0.3, 0.4), (0.3, 0.3, 0.4)))


SHARES = ((0.7, 0.3), (0.5, 0.5), (0.5, 0.2), (0.9, 0.1))


@pytest.mark.parametrize(("a", "b"), SHARES)
def test_settled_voting_is_full_voting_for_fewer_tokens(a, b):
    found = law_stops_early(Adaptive(num=5, rule=Settled()), SelfConsistency(num=5), model(a, b))
    assert found.changed == 0 and 3 <= found.draws < 5


def cooled(a, b, temperature=0.8):
    rest = 1 - a - b
    mass = [x ** (1 / temperature) if x > 0 else 0.0 for x in (a, b, rest if rest > 1e-12 else 0.0)]
    return [x / sum(mass) for x in mass]


@pytest.mark.parametrize(("a", "b"), SHARES)
def test_windows_cost_what_the_closed_form_says(a, b):
    """Mean draws w (1 - (1 - u)^m) / u, u the chance of a unanimous window of answers."""
    p, q, _ = cooled(a, b)
    unanimous = p**2 + q**2
    found = law_stops_early(Adaptive(num=4, rule=UnanimousWindow(size=2)), SelfConsistency(num=4), model(a, b))
    assert found.draws == pytest.approx(2 * (1 - (1 - unanimous) ** 2) / unanimous, abs=1e-12)
    sliding = law_stops_early(Adaptive(num=4, rule=Sliding(size=2)), SelfConsistency(num=4), model(a, b))
    assert abs(sliding.draws - found.draws) > 0.01


@pytest.mark.parametrize(("p", "q"), [(0.7, 0.3), (0.5, 0.5), (0.9, 0.1)])
def test_the_beta_test_costs_and_errs_as_counted_by_hand(p, q):
    """confidence 0.95 of 6: it stops after 4 equal answers or draws 6. (5 to 1 is 0.9375.) Another answer: never, 4 to 2 still wins."""
    a, b, _ = cooled(p, q)
    found = law_stops_early(Adaptive(num=6, rule=BetaTest()), SelfConsistency(num=6), model(p, q))
    assert found.draws == pytest.approx(6 - 2 * (a**4 + b**4), abs=1e-12) and found.changed == 0
    bold = law_stops_early(Adaptive(num=4, rule=BetaTest(confidence=0.7)), SelfConsistency(num=4), model(p, q))
    assert bold.draws == pytest.approx(1.0)  # one vote already has probability 3/4
    three_others = a * b**3 + b * a**3
    assert three_others <= bold.changed <= three_others + 3 * 2 * a * a * b * b  # ties go to the likelier answer


def test_adaptive_of_one_is_a_sample():
    sampling = Adaptive(num=1, rule=BetaTest()).sampling
    laws.law_alone_is_a_sample(Adaptive(num=1, rule=Settled()), sampling)


def test_an_adaptive_vote_of_one_mind_is_short():
    sure = ToyLM("ab", ((1.0, 0.0, 0.0), (0.3, 0.3, 0.4), (0.3, 0.3, 0.4)))
    found = law_stops_early(Adaptive(num=16, rule=BetaTest()), SelfConsistency(num=16), sure)
    assert found.draws == pytest.approx(4.0) and found.answers == pytest.approx({"a": 1.0})


def told(text, log_p=-1.0, finish="stop"):
    return Candidate(text, NUMBERS.answers.read(text), tokens=(hash(text) % 1000,), log_p=log_p, finish=finish)


def test_labels_go_by_meaning():
    drawn = [told("it is 1,000"), told("no idea"), told("2"), told("1000.0"), told("\\boxed{1000}", finish="budget")]
    assert labels(drawn, Number()) == [0, None, 1, 0, None]
    assert leading_two([0, None, 1, 0, None]) == (2, 1) and leading_two([]) == (0, 0) and leading_two([None, 3]) == (1, 0)


@dataclass
class Slow:
    """Counts its comparisons."""

    calls: int = 0

    def read(self, text):
        return text

    def same(self, a, b):
        self.calls += 1
        return a.casefold() == b.casefold()


def test_equal_strings_are_compared_once():
    reader = Slow()
    drawn = [replace(told("x"), text=t, answer=t) for t in "aAbaBbAaab"]
    assert labels(drawn, reader) == [0, 0, 1, 0, 1, 1, 0, 0, 0, 1] and reader.calls == 1 + 1 + 2


def test_adaptive_reports_what_it_drew():
    outcome = played(Adaptive(num=6, rule=Settled()), ONE_TOKEN).result
    assert outcome.diagnostics["num_drawn"] == len(outcome.candidates) <= 6 and outcome.diagnostics["num_rounds"] >= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: BetaTest(confidence=0.5),
        lambda: BetaTest(batch=0),
        lambda: UnanimousWindow(size=1),
        lambda: Adaptive(num=0, rule=Settled()),
        lambda: Rpc(num=0),
        lambda: Rpc(num=4, keep_from=1.5),
        lambda: DeepConf(num=4, num_warm=5),
        lambda: DeepConf(num=8, keep=0.0),
        lambda: DeepConf(num=8, window=0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField, match="must be"):
        make()


# ---- perplexity consistency with reasoning pruning


def quantiles(shape, scale, num):
    """log x at the middle of `num` equal shares of a Weibull distribution."""
    return [math.log(scale) + math.log(-math.log(1 - (i + 0.5) / num)) / shape for i in range(num)]


def shuffled(log_p, key=0):
    return random.Random(key).sample(log_p, len(log_p))


PATHS = (
    shuffled(quantiles(3.0, 1e-3, 9) + quantiles(1.5, 1e-14, 7)),
    shuffled(quantiles(0.7, 1e-9, 16)),
    [-1.0, -2.0],
    [-3.0] * 6,
    [-20.0 - 0.001 * i for i in range(8)],
    [-900.0 * i - 1 for i in range(6)],  # would underflow as probabilities
    *([random.Random(key).uniform(-60, -1) for _ in range(12)] for key in range(12)),
    *([round(random.Random(key).expovariate(0.2), 1) * -1 - 1 for _ in range(16)] for key in range(12)),
)


def test_pruning_keeps_its_laws():
    laws_voting.law_pruning_knows_no_unit(pruned, PATHS)
    laws_voting.law_pruning_keeps_the_likely(pruned, PATHS)


def test_pruning_without_logarithms_is_caught():
    with pytest.raises(AssertionError, match="when shifted"):
        laws_voting.law_pruning_knows_no_unit(lambda log_p: [math.exp(x) > 1e-9 for x in log_p], PATHS)


def test_pruning_without_its_safeguard_is_caught():
    with pytest.raises(AssertionError, match="above the mean"):
        laws_voting.law_pruning_keeps_the_likely(lambda log_p: [x < max(log_p) for x in log_p], PATHS)


def test_a_weibull_distribution_is_found_again():
    for shape, scale in ((0.4, 1e-6), (1.0, 3.0), (6.0, 0.02)):
        k, log_scale = weibull(np.array(quantiles(shape, scale, 4000)), np.ones(4000))
        assert k == pytest.approx(shape, rel=0.01) and log_scale == pytest.approx(math.log(scale), abs=0.01)


def test_two_far_components_are_told_apart():
    high, low = quantiles(3.0, 1e-3, 9), quantiles(1.5, 1e-14, 7)
    assert mixture(np.array(high + low)) == pytest.approx([1.0] * 9 + [0.0] * 7, abs=1e-6)
    assert pruned(high + low) == [True] * 9 + [False] * 7
    assert pruned(high + low, 0.0) == [True] * 16


def test_pruning_takes_the_vote_from_many_unlikely_paths():
    """Nine paths to one answer, each a billion times less likely than the single path to the other, lose; three votes win by number."""
    unlikely = [Candidate(f"1, way {i}", "1", (i,), log_p=-40.0 - i, finish="stop") for i in range(9)]
    likely = [Candidate("2", "2", (99,), log_p=-3.0, finish="stop")]
    everyone = [*unlikely, *likely]
    assert voted(everyone, one_each(everyone), NUMBERS).candidates[0].answer == "1"
    assert voted(everyone, by_path_probability(everyone), NUMBERS).candidates[0].answer == "2"


def test_rpc_that_keeps_all_is_perplexity_consistency():
    for key in range(6):
        kept, plain = Rpc(num=9, keep_from=0.0), SelfConsistency(num=9, weigh=by_path_probability, sampling=Rpc(num=1).sampling)
        ours, theirs = played(kept, key=key).result, played(plain, key=key).result
        assert ours.candidates == theirs.candidates and ours.diagnostics["num_pruned"] == 0


def test_rpc_of_one_is_a_sample():
    laws.law_alone_is_a_sample(Rpc(num=1), Rpc(num=1).sampling)


def test_paths_drawn_again_add_nothing():
    paths = [Candidate(f"{i % 3}", f"{i % 3}", (i,), log_p=-2.0 - 3 * i, finish="stop") for i in range(7)]
    laws_voting.law_copies_add_nothing(lambda drawn: voted(drawn, by_path_probability(drawn), NUMBERS), paths)
    with pytest.raises(AssertionError, match="weighs more"):
        laws_voting.law_copies_add_nothing(lambda drawn: voted(drawn, [math.exp(c.log_p) for c in drawn], NUMBERS), paths)


# ---- weighted best-of-N


@dataclass(frozen=True)
class Saying:
    """A verifier that says one thing of everything."""

    verdict: Verdict
    name: str = "saying"

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        return (self.verdict,) * len(candidates)


@pytest.mark.parametrize("verdict", (Verdict(1.0, "probability"), Verdict(0.2, "probability"), Verdict(-3.0, "log_p"), Verdict(7.0, "score")))
def test_a_verifier_that_always_says_the_same_leaves_the_vote(verdict):
    """Whatever its unit: equal verdicts are equal votes."""
    for key in range(6):
        plain, weighted = (played(SelfConsistency(num=7, verifier=v), key=key).result for v in (None, Saying(verdict)))
        assert [c.tokens for c in plain.candidates] == [c.tokens for c in weighted.candidates]
        assert plain.confidence == pytest.approx(weighted.confidence, abs=1e-12)


def test_a_weighted_vote_is_the_sum_of_verdicts():
    verdicts = (0.5, 0.2, 0.2, 0.2, None)
    drawn = [replace(told(text), verdicts=(Verdict(v, "probability"),)) for text, v in zip(("1", "2", "2.0", "2", "3"), verdicts)]
    shares = voted(drawn, by_verdict(drawn), NUMBERS).diagnostics["shares"]
    assert shares == pytest.approx({"2": 0.6 / 1.1, "1": 0.5 / 1.1, "3": 0.0})


# ---- confident answers


def test_confidence_is_high_where_the_model_is_sure():
    sure, unsure = ([math.log(p) for p in row] for row in ((0.98, 0.01, 0.01), (0.4, 0.3, 0.3)))
    told = [TokenLogP(0, row[0], tuple(enumerate(row))) for row in (sure, unsure)]
    assert confidence(told[0]) == pytest.approx(-sum(sure) / 3) and confidence(told[0]) > confidence(told[1])
    assert confidence(TokenLogP(0, 0.0, ((0, 0.0), (1, -math.inf)))) == 50.0


def test_the_lowest_group_is_the_least_window():
    values = [5.0, 1.0, 3.0, 2.0, 9.0]
    assert [lowest_group(values, w) for w in (1, 2, 3, 5, 99)] == [1.0, 2.0, 2.0, 4.0, 4.0] and lowest_group([], 3) == 0.0
    assert (tail_group(values, 2), whole_mean(values, 2), bottom_groups(values, 2)) == (5.5, 4.0, 2.0)
    many = [float(i) for i in range(40)]
    assert bottom_groups(many, 1) == 1.5 and whole_mean([], 1) == tail_group([], 1) == 0.0


def test_the_bar_lets_a_share_of_the_warm_answers_pass():
    traces = [Trace(laws.Prefix(PROMPT), (float(c),)) for c in (3, 9, 1, 7, 5)]
    for keep, bar in ((1.0, 1.0), (0.6, 5.0), (0.5, 5.0), (0.2, 9.0), (0.01, 9.0)):
        assert DeepConf(num=5, num_warm=5, keep=keep).bar(traces, lowest_group) == bar


TWO_TOKENS = Prompt(messages=(("raw", "q"),), max_tokens=2)
UNEVEN = ToyLM("ab", ((0.5, 0.4, 0.1), (0.9, 0.06, 0.04), (0.35, 0.35, 0.3)))


@dataclass(frozen=True, kw_only=True)
class Blind(DeepConf):
    """Never gives an answer up; filters all of them at the end by the bar of the warm ones."""

    def grown(self, traces, bar, best, rng):
        return (yield from super().grown(traces, None, best, rng))


@dataclass(frozen=True, kw_only=True)
class Impatient(DeepConf):
    """Mutant: judges the last tokens alone even before a window is full."""

    def grown(self, traces, bar, best, rng):
        done = yield from super().grown(traces, bar, best, rng)
        return [replace(t, is_cut=bar is not None and (t.is_cut or t.confidences[-1] < bar)) for t in done]


def election(kind):
    strategy = kind(num=2, num_warm=1, keep=1.0, share=2.0, window=2, top=3, step_tokens=1)
    return laws.enumerated(strategy, lambda o: {(o.candidates[0].answer, round(o.confidence or 0.0, 9)): 1.0}, UNEVEN, TWO_TOKENS).measure


def test_giving_up_changes_no_vote():
    """A lowest group only falls: who is given up could not have voted. So the election is that of the filter over whole answers."""
    assert difference(election(DeepConf), election(Blind)) < 1e-12
    assert difference(election(Impatient), election(Blind)) > 1e-3


def test_giving_up_saves_tokens():
    settings = dict(num=16, num_warm=4, keep=0.25, share=2.0, window=2, top=3, step_tokens=1)
    long = Prompt(messages=(("raw", "q"),), max_tokens=20)
    pairs = [tuple(answer_all(kind(**settings).run(long, TorchRng(key)), ToyProcess(UNEVEN)) for kind in (DeepConf, Blind)) for key in range(8)]
    spent = [sum(done.cost.generated_tokens for done in side) for side in zip(*pairs)]
    assert spent[0] < 0.8 * spent[1]
    assert all(cut.result.diagnostics["num_cut"] > 0 for cut, _ in pairs)


def test_a_clear_lead_ends_the_draws():
    sure = ToyLM("ab", ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 1.0)))
    outcome = answer_all(DeepConf(num=16, num_warm=4).run(TWO_TOKENS, TorchRng(0)), ToyProcess(sure)).result
    assert (outcome.diagnostics["num_drawn"], outcome.confidence, outcome.candidates[0].answer) == (4, 1.0, "a")


def test_deepconf_of_one_is_a_sample():
    laws.law_alone_is_a_sample(DeepConf(num=1, num_warm=1), DeepConf(num=1, num_warm=1).sampling)


def test_a_filter_of_all_is_a_vote_weighted_by_confidence():
    """keep 1 of all: nobody is left out."""
    outcome = played(DeepConf(num=6, num_warm=6, keep=1.0)).result
    assert outcome.diagnostics["num_kept"] == 6 and sum(outcome.diagnostics["shares"].values()) == pytest.approx(1.0)
