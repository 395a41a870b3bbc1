"""What a verifier's mistakes cost: the accuracy that no number of further samples can exceed.

Paper      Stroebl, Kapoor & Narayanan 2024, "Inference Scaling fLaws" (arXiv:2411.17501); re-derived here.
Equation   A sample is right with probability r; the verifier accepts right ones with probability t, wrong ones with f.
           accept a = t r + f (1 - r);  P(right | accepted) = t r / a, whatever was rejected before: samples are independent.
           After at most k tries: P(right) = (1 - (1 - a)^k) t r / a, P(wrong) = (1 - (1 - a)^k) f (1 - r) / a, else none.
           Ceiling over questions: mean of t r_i / a_i; a question that is never accepted counts as not answered.
Shapes     rates [Q], t, f -> probability
Guarantee  exact for independent samples and a verifier that errs independently of everything but rightness.

Best-of-N with a graded verdict is resampling with the threshold that one in N reaches.
"""

import math
from collections.abc import Sequence

from ponder.core.errors import BadField


def check_rates(rates: Sequence[float], accepts_right: float, accepts_wrong: float) -> None:
    """Raises BadField for no rates or one outside [0, 1]."""
    bad = next((x for x in (*rates, accepts_right, accepts_wrong) if not 0 <= x <= 1), None)
    if bad is not None or not rates:
        raise BadField(f"rate {bad} of {len(rates)} questions: needs at least one, each between 0 and 1")


def right_if_accepted(rate: float, accepts_right: float, accepts_wrong: float) -> float | None:
    """P(right | accepted) of one question; None where nothing is ever accepted."""
    accepted = accepts_right * rate + accepts_wrong * (1 - rate)
    return accepts_right * rate / accepted if accepted > 0 else None


def ceiling(rates: Sequence[float], accepts_right: float, accepts_wrong: float) -> float:
    """Share of questions answered right with samples without end."""
    check_rates(rates, accepts_right, accepts_wrong)
    return math.fsum(right_if_accepted(r, accepts_right, accepts_wrong) or 0.0 for r in rates) / len(rates)


def after(rates: Sequence[float], accepts_right: float, accepts_wrong: float, *, num: int) -> tuple[float, float]:
    """(right, wrong): shares of questions answered right and wrong after at most `num` samples each; the rest is not answered."""
    check_rates(rates, accepts_right, accepts_wrong)
    right = wrong = 0.0
    for r in rates:
        found = right_if_accepted(r, accepts_right, accepts_wrong)
        if found is not None:
            reached = 1 - (1 - accepts_right * r - accepts_wrong * (1 - r)) ** num
            right, wrong = right + reached * found, wrong + reached * (1 - found)
    return right / len(rates), wrong / len(rates)


def best_num(rates: Sequence[float], accepts_right: float, accepts_wrong: float, *, harm: float, price: float, most: int = 1000) -> int:
    """Number of tries, at most `most`, of the largest P(right) - harm P(wrong) - price E[samples]; 0: better not to answer at all.

    harm: what a wrong answer costs, as a multiple of what a right one is worth. price: of one sample, likewise.
    """
    check_rates(rates, accepts_right, accepts_wrong)
    best, value, best_value, right_before, wrong_before = 0, 0.0, 0.0, 0.0, 0.0
    for num in range(1, most + 1):
        right, wrong = after(rates, accepts_right, accepts_wrong, num=num)
        value += (right - right_before) - harm * (wrong - wrong_before) - price * (1 - right_before - wrong_before)
        if value > best_value + 1e-15:
            best, best_value = num, value
        right_before, wrong_before = right, wrong
    return best
