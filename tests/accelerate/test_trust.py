"""Trusting the drafter: its distribution where it is sure, plain decoding's where it is not, by enumeration; and on a real round."""

import math
from dataclasses import dataclass
from functools import partial

import pytest

from engine.test_rounds import told
from engine.test_runners import free_asks, opened, silent
from ponder.accelerate.accept.trust import Trust
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.core.asks import Extend, Sampling
from ponder.core.draft import ROOT, Accepted, Tree, chain
from ponder.core.errors import BadField
from ponder.core.rng import Rng, TorchRng
from ponder.testing.exact import TOLERANCE, enumerate_paths, require
from ponder.testing.laws_draft import OTHER, P, drawn_tree, target_of


def first_token(acceptor, rng: Rng) -> int:
    """Of a round after token 0 whose draft is one token drawn from another table, with its probability there as its chance."""
    tree = drawn_tree((ROOT,), 0, OTHER, rng)
    tree = Tree(tree.tokens, tree.parents, tree.log_q, (float(OTHER[0, tree.tokens[0]]),))
    accepted = acceptor.accept(tree, target_of(tree, 0, P, rng), rng)
    return tree.tokens[0] if accepted.path else accepted.token


def law_sure_is_the_drafters_and_the_rest_the_targets(acceptor, least: float) -> None:
    """P(x) = q(x) [q(x) >= least] + p(x) (mass of q below least), to rounding."""
    found = dict.fromkeys(range(len(P)), 0.0)
    for token, mass in enumerate_paths(partial(first_token, acceptor)):
        found[token] += mass
    unsure = sum(float(q) for q in OTHER[0] if q < least)
    for token, mass in found.items():
        q = float(OTHER[0, token])
        wanted = q * (q >= least) + float(P[0, token]) * unsure
        require(abs(mass - wanted) <= TOLERANCE, f"token {token} has probability {mass}, not {wanted}")


LEASTS = (0.0, float(OTHER[0].min()) + 1e-9, float(OTHER[0].max()), 1.1)


@pytest.mark.parametrize("least", LEASTS)
def test_sure_is_the_drafters_and_the_rest_the_targets(least):
    law_sure_is_the_drafters_and_the_rest_the_targets(Trust(least=least), least)


@dataclass(frozen=True)
class Checks(Trust):
    """Keeps what is sure only where the target draws the same."""

    def accept(self, tree, target, rng):
        accepted = super().accept(tree, target, rng)
        is_same = accepted.path and target.drawn[0] == tree.tokens[accepted.path[0]]
        return accepted if is_same else Accepted((), target.drawn[0])


@dataclass(frozen=True)
class Blind(Trust):
    """Never asks how sure."""

    def accept(self, tree, target, rng):
        return Accepted(tuple(range(len(tree))), target.drawn[len(tree)])


@pytest.mark.parametrize("wrong", [Checks, Blind])
def test_the_law_finds_other_rules(wrong):
    with pytest.raises(AssertionError, match="has probability"):
        law_sure_is_the_drafters_and_the_rest_the_targets(wrong(least=LEASTS[1]), LEASTS[1])


def test_paths_end_where_sureness_does_and_go_by_later_children():
    tree = Tree((1, 2, 0, 1), (ROOT, ROOT, 1, 2), None, (0.2, 0.9, 0.8, 0.1))
    target = target_of(tree, 0, P, TorchRng(0))
    assert Trust(least=0.5).accept(tree, target, TorchRng(0)).path == (1, 2)
    assert Trust(least=0.05).accept(tree, target, TorchRng(0)).path == (0,)
    assert Trust(least=0.0).accept(chain((1, 2)), target, TorchRng(0)).path == ()


def test_rounds_trust_as_far_as_they_are_told():
    """With a least above 1 answers are plain decoding's, bit for bit; with 0 every draft is kept, and answers are others."""
    asks = [ask for ask in free_asks() if isinstance(ask, Extend)][:6]
    wanted = told(opened(None), asks)
    drafter = LayerSkip(least=0.0, num=3, ends=1)
    assert told(opened(drafter, acceptor=Trust(least=1.1)), asks) == wanted
    process = opened(drafter, acceptor=Trust(least=0.0))
    found = told(process, [*asks, Extend(prefix=asks[0].prefix, seed=0, sampling=Sampling(top_k=1))])
    assert [a.prefix.tokens for a in found[:-1]] != [a.prefix.tokens for a in wanted]
    assert all(math.isfinite(a.prefix.log_q) for a in found), "a trace would not hold it"
    assert any(a.prefix.log_p < b.prefix.log_p for a, b in zip(found, wanted) if a.prefix.log_q == b.prefix.log_q == 0)  # greedy ones
    assert process.totals.accepted_tokens > 0.8 * process.totals.drafted_tokens
    decoder = silent(1)  # a drafter that is always right is rightly trusted
    assert [a.prefix.tokens for a in told(opened(drafter, decoder, acceptor=Trust(least=0.0)), asks)] == [
        a.prefix.tokens for a in told(opened(None, decoder), asks)
    ]


def test_bad_input_is_named():
    with pytest.raises(BadField, match="least=-1"):
        Trust(least=-1)
