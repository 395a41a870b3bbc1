"""Acceptance heads: lessons are what was judged, heads learn what can be learned, and nothing where there is nothing."""

import math

import pytest
import torch

from engine.test_rounds import told
from engine.test_runners import free_asks, opened
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.core.draft import Guess, Verified, chain
from ponder.core.errors import BadField
from ponder.native.build import library
from ponder.testing.laws_draft import EVEN
from ponder.train.accept_head import AcceptRecipe, Judged, Recorder, auroc, best_threshold, cost_per_token, fit_accept_head, lessons

NATIVE = library() is not None  # the compiled kernel, where there is one: it is faster
DRAWS = torch.Generator().manual_seed(0)
DIM = 8
RECIPE = AcceptRecipe(hidden=4, batch=64, rate=0.02, max_epochs=20)


def rounds(num, decide, length=3):
    """decide(guess) -> whether it is accepted; a round ends at the first that is not."""
    made = []
    for request in range(num):
        for _ in range(8):
            guesses, num_accepted = [], 0
            while len(guesses) < length and num_accepted == len(guesses):
                guesses.append(Guess(0, float(torch.rand(1, generator=DRAWS)), None, torch.randn(DIM, generator=DRAWS)))
                num_accepted += decide(guesses[-1])
            made.append(Judged(request, tuple(guesses), num_accepted))
    return made


def test_a_head_learns_what_states_say():
    """Acceptance is decided by a direction of the state, of which the drafter's probability knows nothing."""
    found = fit_accept_head(rounds(60, lambda g: bool(g.hidden[0] > 0)), drafter="toy", recipe=RECIPE)
    assert found.facts["auroc"] > 0.95 and 0.3 < found.facts["auroc_of_q"] < 0.7
    sure, unsure = (Guess(0, 0.5, None, torch.tensor([x] + [0.1] * 7)) for x in (3.0, -3.0))
    high, low = found.chances([[sure], [unsure]])
    assert high > 0.8 and low < 0.2


def test_a_head_finds_nothing_in_noise():
    coin = torch.Generator().manual_seed(5)
    found = fit_accept_head(rounds(300, lambda g: bool(torch.rand(1, generator=coin) > 0.5)), drafter="toy", recipe=RECIPE)
    assert abs(found.facts["auroc"] - 0.5) < 0.15


def test_refusals_weigh_more():
    """The same coin, by weight: 1 to 1 says 0.5, 3 to 1 says a quarter."""
    coin = torch.Generator().manual_seed(6)
    made = rounds(60, lambda g: bool(torch.rand(1, generator=coin) > 0.5), length=1)
    means = []
    for weight in (1.0, 3.0):
        head = fit_accept_head(made, drafter="toy", recipe=AcceptRecipe(hidden=1, batch=32, rate=0.03, decay=0, reject_weight=weight))
        means.append(sum(head.chances([r.guesses for r in made])) / len(made))
    assert means[0] == pytest.approx(0.5, abs=0.1) and means[1] == pytest.approx(0.25, abs=0.1)


def test_lessons_are_the_guesses_that_were_judged():
    a, b = (Guess(1, q, None, torch.ones(DIM) * q) for q in (0.5, 0.25))
    found = lessons([Judged(0, (a, b), 1), Judged(1, (a,), 1)])
    assert found.is_accepted_N.tolist() == [1, 0, 1]
    assert found.z_NF[:, -2:].tolist() == [pytest.approx([math.log(x), math.log(y)]) for x, y in ((0.5, 0.5), (0.25, 0.125), (0.5, 0.5))]
    assert torch.allclose(found.z_NF[:, :-2], torch.ones(3, DIM))


def recorded(path, num_tokens, num=3):
    """What a recorder keeps of one round of three guesses."""
    recorder = Recorder(num=num)
    recording = recorder.open(lambda: EVEN)
    guesses = [Guess(i, 0.5, None, torch.zeros(DIM)) for i in range(3)]
    assert [recording.goes_on([7], [guesses[: n + 1]])[0] for n in range(3)] == [True, True, False]
    recording.learn([Verified(request=7, tree=chain((0, 1, 2)), path=path, tokens=(0,) * num_tokens)], None)
    return [(j.request, len(j.guesses), j.num_accepted) for j in recorder.judged]


def test_guesses_behind_a_refused_one_were_never_judged():
    assert recorded((0,), 2) == [(7, 2, 1)]
    assert recorded((), 1) == [(7, 1, 0)]
    assert recorded((0, 1, 2), 4) == [(7, 3, 3)]


def test_guesses_behind_the_end_of_an_answer_were_never_judged():
    assert recorded((0, 1), 2) == [(7, 2, 2)]


def test_recording_changes_no_answer_and_judges_as_the_acceptor():
    recorder = Recorder(num=3)
    process = opened(LayerSkip(least=0.0, num=8, ends=1), control=recorder, is_native=NATIVE)
    asks = free_asks()[:4]
    assert told(process, asks) == told(opened(None, is_native=NATIVE), asks)
    # a draft that fills its room is not asked about again, so its last guess is not told
    assert 0.5 * process.totals.accepted_tokens < sum(j.num_accepted for j in recorder.judged) <= process.totals.accepted_tokens
    assert all(0 <= len(j.guesses) - j.num_accepted <= 1 and len(j.guesses) <= 3 for j in recorder.judged) and recorder.costs


class Ladder:
    """A head that trusts by the drafter's probability."""

    def chances(self, drafts):
        return [draft[-1].chance for draft in drafts]


def test_what_a_threshold_costs():
    sure, unsure = Guess(0, 0.9), Guess(0, 0.3)
    made = [Judged(0, (sure, sure, unsure), 2), Judged(1, (unsure,), 0)]
    # above 0.5: the first stops with the unsure one drafted, 3 guesses for 3 tokens; the second after 1 for 1
    assert cost_per_token(made, Ladder(), draft=0.5, stop_above=0.5) == pytest.approx((1 + 1.5 + 1 + 0.5) / 4)
    assert cost_per_token(made, Ladder(), draft=0.5, stop_above=0.15) == pytest.approx((1 + 1.0 + 1 + 0.5) / 4)
    assert best_threshold(made, Ladder(), draft=0.5) in (0.2, 0.15, 0.1)


def test_auroc_counts_pairs():
    scores, right = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert auroc(scores, right) == pytest.approx((1 + 0.5 + 1 + 1) / 4) and math.isnan(auroc(scores, torch.ones(4)))


@pytest.mark.parametrize("change", [{"hidden": 0}, {"rate": 0}, {"decay": -1}, {"reject_weight": 0}])
def test_bad_recipes_are_refused(change):
    with pytest.raises(BadField, match="at least 1"):
        AcceptRecipe(**change)


def test_few_answers_and_equal_outcomes_are_refused():
    with pytest.raises(BadField, match="3 answers"):
        fit_accept_head(rounds(3, lambda g: True), drafter="toy")
    with pytest.raises(BadField, match="one outcome"):
        fit_accept_head(rounds(12, lambda g: True), drafter="toy")
