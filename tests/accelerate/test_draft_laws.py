"""Catalogue x laws of drafters, acceptors and length controls, and what makes some of them themselves."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.accept.typical import Typical
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.threshold import Threshold
from ponder.catalogue import ACCEPTORS, DRAFTERS, LENGTHS
from ponder.core.draft import EMPTY, Context, StepCosts, Target, Tree, Verified, chain
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import TorchRng
from ponder.testing.laws_draft import (
    DRAFTER_LAWS,
    EXACT_LAWS,
    OTHER,
    PLAIN_HOST,
    P,
    Setting,
    Story,
    drawn_tree,
    law_control_keeps_the_distribution,
    law_counts_are_counts,
    law_keeps_the_distribution,
    law_likely_is_accepted,
)

EXACT = {name: acceptor for name, acceptor in ACCEPTORS.items() if acceptor.guarantee is Guarantee.EXACT}
WORDS = random.Random(4)


def story(num: int) -> Story:
    words = [[WORDS.randrange(6) for _ in range(3)] for _ in range(3)]
    tokens = tuple(itertools.chain(*(WORDS.choice(words) for _ in range(num))))
    return Story(tokens=tokens, num_prompt=6, steps=(1, 2, 1, 3, 1))


STORIES = [story(8), story(9), story(6)]


@pytest.mark.parametrize("law", EXACT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", EXACT)
def test_exact_acceptors(name, law):
    law(EXACT[name])


def test_the_lossy_acceptor_is_lossy():
    """So that it may not be declared exact."""
    with pytest.raises(AssertionError, match="plain decoding gives"):
        law_keeps_the_distribution(Typical())
    EXACT_LAWS[1](Typical())


def test_rejection_accepts_all_that_two_distributions_share():
    law_likely_is_accepted(Rejection(), float(torch.minimum(P[0], OTHER[0]).sum()))


@pytest.mark.parametrize("num", [5000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_rejection_draws_as_the_target_does(num):
    """Chi-square over 24 tokens, truncated rows, a tree of four draws; the bound is its 1 - 1e-6 quantile at 23 degrees of freedom."""
    rng = TorchRng(5)
    p, q = (torch.rand(24, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
    p[:4], q[2:6] = 0, 0
    p, q = p / p.sum(), q / q.sum()
    counts = torch.zeros(24)
    target = Target((), lambda row: p.log())
    for _ in range(num):
        tree = drawn_tree((-1, -1, -1), 0, q[None].expand(24, -1), rng)
        accepted = Rejection().accept(tree, target, rng)
        counts[tree.tokens[accepted.path[0]] if accepted.path else accepted.token] += 1
    wanted = num * p
    assert float(counts[p == 0].sum()) == 0
    assert float(((counts - wanted) ** 2 / wanted)[p > 0].sum()) < 68


@pytest.mark.parametrize("law", DRAFTER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", DRAFTERS)
def test_drafters(name, law):
    law(Setting(DRAFTERS[name], PLAIN_HOST), STORIES)


@pytest.mark.parametrize("name", LENGTHS)
def test_length_controls(name):
    law_counts_are_counts(LENGTHS[name])


@pytest.mark.parametrize("name", LENGTHS)
def test_controls_keep_the_distribution_of_drawn_drafts(name):
    law_control_keeps_the_distribution(LENGTHS[name], Rejection())


def slow_ngram(settings: Ngram, tokens: list[int], room: int) -> tuple[int, ...]:
    for size in range(settings.longest, settings.shortest - 1, -1):
        for at in range(len(tokens) - 1, size - 1, -1):
            if tokens[at - size : at] == tokens[-size:]:
                made = list(tokens)
                for i in range(min(room, settings.num)):
                    made.append(made[at + i])
                return tuple(made[len(tokens) :])
    return ()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 2), st.data())
def test_ngram_is_brute_force(tokens, shortest, more, data):
    """However the tokens come, in pieces of any size."""
    settings = Ngram(shortest=shortest, longest=shortest + more, num=5)
    drafting = settings.open(PLAIN_HOST)
    ends = sorted({len(tokens), *data.draw(st.lists(st.integers(1, len(tokens)), max_size=6))})
    for end in ends:
        room = data.draw(st.integers(1, 6))
        (tree,) = drafting.propose([Context(request=7, tokens=tokens[:end], num_prompt=1, room=room, max_depth=room)])
        assert tree.tokens == slow_ngram(settings, tokens[:end], room) and tree.is_chain


def test_lengths():
    tree = Tree((1, 2, 3, 4), (-1, 0, 0, 1), chances=(0.9, 0.8, 0.5, 0.9))
    assert Threshold(least=0.5).cut([0, 1], [tree, EMPTY], 2) == [2, 0]
    assert Threshold(least=0.4).cut([0], [tree], 1) == [4] and Threshold(least=0.95).cut([0], [tree], 1) == [0]
    assert Fixed(num=3).rooms([5, 6]) == [3, 3] and Fixed().cut([5], [chain((1, 2))], 1) == [2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ngram(longest=1, shortest=2), lambda: Ngram(num=0), lambda: Fixed(num=-1), lambda: Expected(memory=1.0), lambda: Threshold(least=2),
        lambda: Typical(epsilon=0), lambda: Typical(delta=-1),
    ],
)  # fmt: skip
def test_bad_settings(make):
    with pytest.raises(BadField, match=r"must be|at least"):
        make()


def test_chances_are_believed_as_far_as_they_came_true():
    """A drafter whose chances come true keeps its likely tokens and loses the others; one that always promises too much is not believed."""
    tree = Tree((1, 2, 3), (-1, 0, -1), chances=(0.9, 0.9, 0.05))
    for path, wanted in (((0, 1), 2), ((), 0)):
        control = Expected().open(lambda: StepCosts(seconds=((1, 0.01), (11, 0.02))))  # a row more costs a tenth of a step
        for _ in range(80):
            control.learn([Verified(request=1, tree=tree, path=path, tokens=(1,) * (1 + len(path)))], None)
        control.own[1].balance = 0.25  # two rows' worth, no probe's
        assert control.cut([1], [tree], 1) == [wanted]
