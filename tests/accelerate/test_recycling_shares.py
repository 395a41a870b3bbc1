"""Token Recycling learns from what came, drafted or not, which ranks of its rows are worth a place."""

import pytest
import torch

from ponder.accelerate.draft.token_recycling import KEPT, WEIGHT, Recycling, TokenRecycling
from ponder.core.draft import EMPTY, Context, Verified
from ponder.testing.laws_rounds import HOST


def told(drafting: Recycling, request: int, rank: int, num: int) -> list[int]:
    """A request whose every token is followed by the one that its row holds at that rank; its tokens."""
    tokens = [0]
    drafting.propose([context(request, tokens)])
    for _ in range(num):
        above = tokens[-1]
        tokens.append((above + 1) % 3)
        top = [9, 10, 11, 8, 7, 6, 5, 4]
        top[rank] = tokens[-1]
        drafting.observe([Verified(request=request, tree=EMPTY, path=(), tokens=(tokens[-1],), top=torch.tensor([top]))])
    return tokens


def context(request: int, tokens: list[int]) -> Context:
    return Context(request=request, tokens=tokens, num_prompt=1, room=3, max_depth=1)


@pytest.mark.parametrize("rank", [0, 2, 7])
def test_the_rank_that_comes_true_is_tried_first(rank: int):
    drafting = TokenRecycling().open(HOST)
    tokens = told(drafting, 1, rank, 60)
    (tree,) = drafting.propose([context(1, tokens)])
    assert tree.tokens[0] == (tokens[-1] + 1) % 3
    known = 60 - 3  # the first time that each of the three tokens is followed there is no row of it
    wanted = (WEIGHT * TokenRecycling().shares[rank] + known) / (WEIGHT + known)
    assert tree.chances is not None and tree.chances[0] == pytest.approx(wanted, abs=0.006)


def test_what_does_not_learn_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recycling, "_count", lambda self, request, tokens: None)
    with pytest.raises(AssertionError):
        test_the_rank_that_comes_true_is_tried_first(2)


@pytest.mark.parametrize("over", ["request", "session"])
def test_shares_are_kept_within_their_scope(over: str):
    drafting = TokenRecycling(over=over).open(HOST)  # type: ignore[arg-type]
    told(drafting, 1, 2, 60)
    tokens = told(drafting, 2, 0, 1)
    assert (drafting._shares(2) == TokenRecycling().shares) == (over == "request")
    assert len(drafting._shares(2)) == KEPT and tokens == [0, 1]
    drafting.forget(2)
    assert (2 in drafting.counts) is False
