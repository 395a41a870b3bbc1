"""Heads fitted to many tokens: they find what can be found, also what only their own guesses tell, and nothing in noise."""

import dataclasses

import pytest
import torch

from ponder.accelerate.draft.hydra import Hydra
from ponder.core.draft import Host
from ponder.core.errors import BadField
from ponder.train.guessing import NONE, Chained, GuessRecipe, Parallel, corpus, descend, frequent, joined, lesson
from ponder.train.own_text import Texts
from ponder.train.replay import Line, replayed
from ponder.train.table import filled, ranked, shares_of

VOCAB, DIM, AHEAD = 12, 24, 4
DRAWS = torch.Generator().manual_seed(0)
STATES = torch.randn(VOCAB, DIM, generator=DRAWS)
HEAD = torch.randn(VOCAB, DIM, generator=DRAWS)
RECIPE = GuessRecipe(num=3, num_scored=10, num_read=12, batch=256, rate=0.02, warm=5, max_steps=200, max_seconds=60, soft=0.0)


def texts(num, follow, seed=1, length=30):
    """Texts in which follow(token, draws) comes next; the state that a token is drawn from tells the token before it."""
    draws, rows = torch.Generator().manual_seed(seed), []
    for _ in range(num):
        row = [int(torch.randint(10, (1,), generator=draws))]
        while len(row) < length + 1:
            row.append(follow(row[-1], draws))
        rows.append(row)
    rows = torch.tensor(rows)
    return Texts(rows[:, 1:], STATES[rows[:, :-1]])


def cycle(token, draws):
    return (token + 1) % 10


def forks(token, draws):
    """One of two from an even token, nothing to choose from an odd one, behind which an even one comes."""
    return (token + 1 + 4 * int(torch.randint(2, (1,), generator=draws))) % 10 if token % 2 == 0 else (3 * token + 1) % 10


def noise(token, draws):
    return int(torch.randint(10, (1,), generator=draws))


def taught(kind_class, text, recipe=RECIPE, **settings):
    given = corpus(text, AHEAD)
    ids = frequent(given.tokens_N, recipe.num_read, frozenset())
    recipe = dataclasses.replace(recipe, num_scored=min(recipe.num_scored, len(ids)))
    made = lesson(ids, HEAD[ids], VOCAB, recipe)
    kind = kind_class(recipe, DIM, torch.device("cpu"), **settings)
    facts = descend(kind, made, given)
    return kind, made, facts, ids


CHAINED = {"inner": 16, "num_cells": 2}


@pytest.mark.parametrize(("kind", "settings"), [(Parallel, {}), (Chained, CHAINED), (Chained, {"inner": 16, "num_cells": 1})])
def test_heads_learn_a_cycle(kind, settings):
    made, lessons, facts, _ = taught(kind, texts(40, cycle), **settings)
    assert min(lessons.shares(made, corpus(texts(5, cycle), AHEAD))["top1"]) > 0.95
    assert facts["num_steps"] == 200


def test_only_heads_that_read_guesses_follow_a_fork():
    """The second token behind depends on which of two the first was: whoever reads it knows, whoever does not is right half of the time."""
    unseen = corpus(texts(20, forks, seed=2), AHEAD)
    hydra, lessons, _, _ = taught(Chained, texts(60, forks), **CHAINED)
    medusa, same, _, _ = taught(Parallel, texts(60, forks))
    read, unread = lessons.shares(hydra, unseen)["top1"], same.shares(medusa, unseen)["top1"]
    assert min(read) > 0.68 and read[1] > unread[1] + 0.15


def test_heads_find_nothing_in_noise():
    made, lessons, _, _ = taught(Chained, texts(60, noise), **CHAINED)
    assert max(lessons.shares(made, corpus(texts(30, noise, seed=2), AHEAD))["top1"]) < 0.2


def test_the_models_own_distribution_teaches_too():
    """soft=1: what was said counts for nothing, what the state holds likely there for all; here it is the token itself."""
    text = texts(40, cycle)
    text = Texts(text.tokens_BN, HEAD[text.tokens_BN] * 3)  # what a state says is what was drawn from it
    recipe = dataclasses.replace(RECIPE, soft=1.0)
    made, lessons, _, _ = taught(Chained, text, recipe, **CHAINED)
    assert min(lessons.shares(made, corpus(text, AHEAD))["top1"]) > 0.9


def test_a_corpus_has_gaps():
    text = Texts(torch.tensor([[5, 3, 8, NONE], [2, 4, 4, 1]]), torch.arange(8.0).view(2, 4, 1))
    found = corpus(text, 2)
    assert found.tokens_N.tolist() == [5, 3, 8, NONE, NONE, 2, 4, 4, 1, NONE, NONE]
    assert found.states_ND[:, 0].tolist() == [0, 1, 2, 0, 0, 4, 5, 6, 7, 0, 0]
    assert found.starts.tolist() == [0, 1, 5, 6, 7] and len(found) == 7
    twice = joined([found, found])
    assert len(twice) == 14 and twice.starts.tolist() == [0, 1, 5, 6, 7, 11, 12, 16, 17, 18]


def test_frequent_leaves_out_ends():
    assert frequent(torch.tensor([3, 3, 1, NONE, 2, 1, 3, 9]), 3, frozenset({3})).tolist() == [1, 2, 9]


def test_what_is_drafted_is_what_was_fitted():
    """Replay of fitted heads, by the drafter itself: on a cycle every draft is right to its depth."""
    made, lessons, _, ids = taught(Chained, texts(40, cycle), **CHAINED)
    heads = made.heads("toy", ids, lessons.rows_RD, {})
    host = Host(vocab_size=VOCAB, eos_ids=frozenset(), num_layers=1, dim=DIM, runner=None, logits=lambda h: h.float() @ HEAD.T)
    text = texts(3, cycle)
    lines = [Line((0,), tuple(row), states) for row, states in zip(text.tokens_BN.tolist(), text.states_BND)]
    scores = replayed(Hydra(heads=heads, num_tokens=8, branches=2), host, lines, room=8)
    assert all(s.accepted / s.rounds > 2.5 for s in scores) and all(s.rounds + s.accepted == 29 for s in scores)
    untrained = Chained(lessons.recipe, DIM, torch.device("cpu"), **CHAINED).heads("toy", ids, lessons.rows_RD, {})
    assert sum(s.accepted for s in replayed(Hydra(heads=untrained, num_tokens=8, branches=2), host, lines, room=8)) < 30


def test_a_table_holds_what_follows():
    text = texts(10, cycle)
    learned = corpus(Texts(text.tokens_BN, 5 * STATES[(text.tokens_BN - 1) % 10]), AHEAD)
    table = filled(learned, learned, lambda h: h @ STATES.T, VOCAB, model_id="toy")  # likeliest at a state: the token before the one drawn
    for token in range(10):
        assert table.rows[token, 0] == token + 1 and table.rows[token, 1] == token + 1
    assert not table.rows[10:].any() and table.shares[0] < 0.01


def test_shares_count_by_rank():
    rows = ranked(torch.tensor([0, 0, 1]).numpy(), torch.tensor([1, 2, 0]).numpy(), torch.tensor([1.0, 2.0, 1.0]).numpy(), 3)
    assert rows[:, :3].tolist() == [[1, 3, 2], [2, 1, 0], [0, 0, 0]]
    shares = shares_of(rows, torch.tensor([0, 2, NONE, 0, 1, 0, 1]).numpy())
    assert shares[:3] == pytest.approx((2.5 / 5, 2.5 / 5, 0.5 / 5))


@pytest.mark.parametrize("change", [{"num": 0}, {"rate": 0}, {"soft": 2}, {"num_read": 1}])
def test_bad_recipes_are_refused(change):
    with pytest.raises(BadField):
        GuessRecipe(**change)
