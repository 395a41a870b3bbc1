"""Quality agrees with the exact definitions; its intervals are over questions; ceilings follow from simulation and enumeration."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.errors import BadField
from ponder.verify.ceiling import after, best_num, ceiling, right_if_accepted
from ponder.verify.measure import auroc, brier, expected_calibration_error, false_positive_rate, true_positive_rate
from ponder.verify.quality import quality

LEVELS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
JUDGED = st.lists(st.tuples(LEVELS, st.booleans(), st.sampled_from("pqr")), min_size=2, max_size=30).filter(lambda r: len({x for _, x, _ in r}) == 2)


@given(JUDGED)
@settings(max_examples=40, deadline=None)
def test_fast_is_slow(rows):
    values, labels, groups = zip(*rows)
    found = quality(values, labels, groups, is_probability=True)
    assert found.auroc == pytest.approx(auroc(values, labels), abs=1e-12)
    assert found.calibration_error == pytest.approx(expected_calibration_error(values, labels), abs=1e-12)
    assert found.brier == pytest.approx(brier(values, labels), abs=1e-12)
    assert found.false_positive_rate == pytest.approx(false_positive_rate(values, labels, threshold=0.5))
    assert found.true_positive_rate == pytest.approx(true_positive_rate(values, labels, threshold=0.5))
    within = [(v > w) + 0.5 * (v == w) for v, x, g in rows for w, y, h in rows if x and not y and g == h]
    assert found.auroc_within == (pytest.approx(sum(within) / len(within)) if within else None)
    low, high = found.brier_interval
    assert 0 <= low <= high <= 1


def copies(num):
    """40 questions, each answered `num` times alike."""
    draw = random.Random(0)
    rows = [(draw.random(), draw.random() < 0.5, f"q{i}") for i in range(40)]
    return [row for row in rows for _ in range(num)]


def width(rows, by_question=True):
    values, labels, groups = zip(*rows)
    low, high = quality(values, labels, groups if by_question else [str(i) for i in range(len(rows))], is_probability=True).auroc_interval
    return high - low


def test_copies_of_an_answer_tell_nothing_new():
    """Intervals over questions stay as wide when every answer is given ten times; intervals over answers shrink, which is wrong."""
    assert width(copies(10)) == pytest.approx(width(copies(1)), rel=0.02)
    assert width(copies(10), by_question=False) < 0.5 * width(copies(1))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Values of right answers are 0.7 normal deviations higher: the true AUROC is Phi(0.7 / sqrt 2)."""
    truth, draw, num_held = 0.5 * (1 + math.erf(0.35)), random.Random(1), 0
    for _ in range(40):
        labels = [draw.random() < 0.5 for _ in range(80)]
        found = quality([draw.gauss(0.7 * y, 1) for y in labels], labels, [str(i) for i in range(80)], is_probability=False)
        num_held += found.auroc_interval[0] <= truth <= found.auroc_interval[1]
    assert 33 <= num_held <= 40


def test_knowing_hard_questions_is_not_knowing_right_answers():
    """Values that tell questions apart and nothing else: AUROC is high, within questions it is a coin's."""
    rows = [(0.9 if hard == 0 else 0.1, i % 4 < (1 if hard else 3), f"{hard}-{q}") for hard in (0, 1) for q in range(20) for i in range(4)]
    found = quality(*zip(*rows), is_probability=True)
    assert found.auroc == pytest.approx(0.75) and found.auroc_within == 0.5


def test_abstentions_are_counted_and_left_out():
    found = quality([0.9, None, 0.1], [True, True, False], "abc", is_probability=True, tokens=3.0)
    assert (found.num, found.num_abstained, found.auroc, found.tokens) == (3, 1, 1.0, 3.0)
    one_kind = quality([0.9, 0.8], [True, True], "ab", is_probability=True)
    assert one_kind.auroc is None and one_kind.false_positive_rate is None and one_kind.brier is not None
    assert quality([-3.0, 2.0], [True, False], "ab", is_probability=False).calibration_error is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: quality([], [], [], is_probability=True),
        lambda: quality([0.5], [True, False], "a", is_probability=True),
        lambda: quality([1.5], [True], "a", is_probability=True),
        lambda: quality([math.nan], [True], "a", is_probability=False),
        lambda: ceiling([], 1.0, 0.1),
        lambda: ceiling([0.5], 1.2, 0.1),
        lambda: after([-0.1], 1.0, 0.1, num=3),
    ],
    ids=range(7),
)
def test_nonsense_is_refused(call):
    with pytest.raises(BadField):
        call()


def enumerated(rate, accepts_right, accepts_wrong, num):
    """(right, wrong) after at most `num` tries, over every course of events: each try is right or wrong, accepted or not."""
    kinds = {
        ("right", True): rate * accepts_right,
        ("right", False): rate * (1 - accepts_right),
        ("wrong", True): (1 - rate) * accepts_wrong,
        ("wrong", False): (1 - rate) * (1 - accepts_wrong),
    }
    total = {"right": 0.0, "wrong": 0.0, None: 0.0}
    for course in itertools.product(kinds, repeat=num):
        first = next((kind for kind, accepted in course if accepted), None)
        total[first] += math.prod(kinds[event] for event in course)
    return total["right"], total["wrong"]


@pytest.mark.parametrize(("rate", "t", "f"), [(0.3, 0.8, 0.1), (0.05, 1.0, 0.25), (0.9, 0.5, 0.5), (0.4, 0.7, 0.0), (0.0, 1.0, 0.2), (1.0, 0.6, 1.0)])
def test_resampling_by_enumeration(rate, t, f):
    for num in (1, 2, 5):
        assert after([rate], t, f, num=num) == pytest.approx(enumerated(rate, t, f, num), abs=1e-12)
    assert after([rate], t, f, num=5000)[0] == pytest.approx(ceiling([rate], t, f), abs=1e-9)


def test_a_perfect_verifier_has_no_ceiling_and_a_blind_one_changes_nothing():
    rates = [0.01, 0.3, 0.9]
    assert ceiling(rates, 0.2, 0.0) == pytest.approx(1.0)
    assert ceiling(rates, 0.4, 0.4) == pytest.approx(sum(rates) / 3)
    assert ceiling([0.0, 1.0], 1.0, 0.5) == 0.5 and right_if_accepted(0.5, 0.0, 0.0) is None


def best_by_trying(rates, t, f, harm, price):
    """The slow way: the value of every number of tries, by following single questions."""
    values = {0: 0.0}
    for num in range(1, 40):
        total = 0.0
        for r in rates:
            alive = 1.0
            for _ in range(num):
                total += alive * (t * r - harm * f * (1 - r) - price)
                alive *= 1 - t * r - f * (1 - r)
        values[num] = total / len(rates)
    return max(values, key=lambda k: (values[k], -k))


@pytest.mark.parametrize(("harm", "price"), [(0.0, 0.0), (1.0, 0.0), (4.0, 0.0), (8.0, 0.0), (1.0, 0.05), (0.0, 0.3)])
def test_the_best_number_of_tries(harm, price):
    """With easy and hard questions mixed, a wrong answer that hurts makes few tries best, and a very harmful one none."""
    rates = [0.87] * 58 + [0.13] * 42
    assert best_num(rates, 1.0, 0.25, harm=harm, price=price, most=39) == best_by_trying(rates, 1.0, 0.25, harm, price)


def test_the_published_example():
    """arXiv:2411.17501: pass rates 0.87 and 0.13, every right answer accepted, 25 % of wrong ones: harm 4 makes at most 5 tries best."""
    rates = [0.87] * 58 + [0.13] * 42
    assert 1 <= best_num(rates, 1.0, 0.25, harm=4.0, price=0.0) <= 5
    assert best_num(rates, 1.0, 0.25, harm=100.0, price=0.0) == 0
