"""Wrong acceptors, drafters and length controls, each of which a law of ponder.testing.laws_draft must find out."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.length.threshold import Threshold
from ponder.core.draft import ROOT, Accepted, Context, Needs, chain
from ponder.core.guarantee import Guarantee
from ponder.testing import laws_draft
from ponder.testing.laws_draft import (
    PLAIN_HOST,
    Setting,
    Story,
    law_control_keeps_the_distribution,
    law_counts_are_counts,
    law_greedy_is_greedy,
    law_keeps_the_distribution,
)

STORIES = [
    Story(tokens=(1, 2, 3, 1, 2, 3, 1, 2, 5, 1), num_prompt=4, steps=(1, 2, 1)),
    Story(tokens=(5, 1, 2, 4, 5, 1, 2, 0), num_prompt=3, steps=(2, 2)),
]


@dataclass(frozen=True)
class Wrong:
    """Rejection sampling on trees, with one mistake."""

    mistake: str = ""
    guarantee = Guarantee.EXACT
    reads = "log_p"

    def accept(self, tree, target, rng):
        at, path = ROOT, []
        while True:
            p = target.log_p(at + 1).exp()
            whole = p
            for i in tree.children[at]:
                x = tree.tokens[i]
                q = torch.nn.functional.one_hot(torch.tensor(x), len(p)).double() if tree.log_q is None else tree.log_q[i].exp()
                chance = min(1.0, float(p[x] / q[x])) if float(q[x]) else 0.0
                if self.mistake == "accepts by p alone":
                    chance = float(p[x])
                if self.mistake == "accepts what is possible":
                    chance = float(p[x] > 0)
                if self.mistake == "forgets that a guess stands for itself" and tree.log_q is None:
                    chance, q = min(1.0, float(p[x])), torch.zeros_like(p)
                left = (p - q).clamp(min=0)
                if float(left.sum()) <= 0 or float(rng.uniform([torch.tensor([chance], dtype=torch.float64)])[0]) < chance:
                    path.append(i)
                    at = i
                    break
                if self.mistake == "does not renormalise":
                    p = left
                elif self.mistake == "draws anew from all of p":
                    p = whole
                else:
                    p = left / left.sum()
            else:
                return Accepted(tuple(path), int(rng.categorical(p.log()[None])[0]))


@dataclass(frozen=True)
class WrongDraw:
    """Coupled acceptance, with one mistake."""

    mistake: str
    guarantee = Guarantee.EXACT
    reads = "drawn"

    def accept(self, tree, target, rng):
        at, path = ROOT, []
        while True:
            drawn = target.drawn[at + 1]
            found = next((i for i in tree.children[at] if tree.tokens[i] == drawn), None)
            if self.mistake == "matches any token of the tree":
                found = next((i for i in range(len(tree)) if tree.tokens[i] == drawn and i > at), None)
            if found is None:
                return Accepted(tuple(path), target.drawn[0] if self.mistake == "adds the first draw" else drawn)
            path.append(found)
            at = found
            if self.mistake == "accepts at most one":
                return Accepted(tuple(path), target.drawn[at + 1])


def test_the_right_ones_pass():
    law_keeps_the_distribution(Wrong())
    law_greedy_is_greedy(Wrong())
    law_keeps_the_distribution(WrongDraw(""))


@pytest.mark.parametrize(
    "mistake",
    ["accepts by p alone", "accepts what is possible", "forgets that a guess stands for itself", "does not renormalise", "draws anew from all of p"],
)
def test_wrong_rejection(mistake):
    with pytest.raises(AssertionError, match="plain decoding gives"):
        law_keeps_the_distribution(Wrong(mistake))


@pytest.mark.parametrize("mistake", ["matches any token of the tree", "adds the first draw"])
def test_wrong_coupling(mistake):
    with pytest.raises(AssertionError, match=r"plain decoding gives|is no path"):
        law_keeps_the_distribution(WrongDraw(mistake))


def test_an_acceptor_that_wastes_what_is_right():
    with pytest.raises(AssertionError, match="greedy decoding gives"):
        law_greedy_is_greedy(WrongDraw("accepts at most one"))


@dataclass
class WrongDrafting:
    mistake: str
    seen: list[int]

    def propose(self, contexts):
        trees = []
        for context in contexts:
            if self.mistake == "changes what is given":
                context.tokens.append(0)
            tokens = self.seen[-2:] if self.mistake in ("shares", "is shared", "never forgets") else [1]
            num = 9 if self.mistake == "is too long" else 1
            trees.append(chain([9] if self.mistake == "knows other tokens" else tokens[: context.room] * num))
            self.seen += context.tokens
        return trees[1:] if self.mistake == "answers some" else trees

    def observe(self, verified):
        return None

    def forget(self, request):
        return None


@dataclass(frozen=True)
class WrongDrafter:
    mistake: str
    kept: ClassVar[list[int]] = []
    guarantee, scope, needs = Guarantee.EXACT, "request", Needs()

    def open(self, host):
        return WrongDrafting(self.mistake, self.kept if self.mistake == "is shared" else [])


@pytest.mark.parametrize(
    ("law", "mistake"),
    [
        ("law_drafts_fit", "is too long"),
        ("law_drafts_fit", "knows other tokens"),
        ("law_drafts_fit", "answers some"),
        ("law_requests_stand_apart", "shares"),
        ("law_drafts_repeat", "is shared"),
        ("law_forgets", "never forgets"),
    ],
)
def test_wrong_drafters(law, mistake):
    with pytest.raises(AssertionError):
        getattr(laws_draft, law)(Setting(WrongDrafter(mistake), PLAIN_HOST), STORIES)


@dataclass(frozen=True)
class WrongControl:
    mistake: str

    def open(self, costs):
        return self

    def rooms(self, requests):
        return [-1 if self.mistake == "is negative" else 2] * (len(requests) - (self.mistake == "leaves one out"))

    def goes_on(self, requests, drafts):
        return [True] * (len(requests) - (self.mistake == "goes on for fewer"))

    def cut(self, requests, trees, num_rows):
        if self.mistake == "chooses by tokens":
            return [int(tree.tokens[:1] != (2,)) for tree in trees]
        return [2 if self.mistake == "keeps more than there is" else len(tree) for tree in trees]

    def learn(self, verified, spent):
        return None

    def forget(self, request):
        return None


@pytest.mark.parametrize("mistake", ["is negative", "leaves one out", "goes on for fewer", "keeps more than there is"])
def test_wrong_controls(mistake):
    with pytest.raises(AssertionError, match=r"rooms|cuts|goes_on"):
        law_counts_are_counts(WrongControl(mistake))


def test_a_control_that_drops_what_was_drawn(monkeypatch):
    """Were it shown what was drawn, choosing by it would change what comes out."""
    law_control_keeps_the_distribution(WrongControl("chooses by tokens"), Rejection())
    monkeypatch.setattr(laws_draft, "shortened", lambda c, r, trees, n: [t.first(k) for t, k in zip(trees, c.cut(r, trees, n))])
    with pytest.raises(AssertionError, match="plain decoding gives"):
        law_control_keeps_the_distribution(WrongControl("chooses by tokens"), Rejection())
    with pytest.raises(AssertionError, match="plain decoding gives"):
        law_control_keeps_the_distribution(Threshold(least=0.45), Rejection())


def test_a_context_knows_its_place():
    assert Context(request=0, tokens=[1, 2, 3], num_prompt=2, room=1, max_depth=1).position == 1
