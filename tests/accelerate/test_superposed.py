"""Superposed drafts: what a place that is several tokens at once means, and the tree of paths that comes of it."""

import math
from dataclasses import replace

import pytest
import torch

from engine.test_rounds import told
from engine.test_runners import free_asks, opened
from engine.tiny_models import VOCAB, StateCheckpoint, tiny
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.draft.stretches import Counts
from ponder.accelerate.draft.superposed import FLOOR, ORDERS, Path, Superposed, blur_of, ngram, tree_of
from ponder.accelerate.weights.dense import Float32
from ponder.core.asks import GREEDY, Extend, Prefix, Sampling, chat
from ponder.core.draft import ROOT, Context
from ponder.core.errors import BadField
from ponder.engine.attend import Attention
from ponder.engine.runners import TwinRunner
from ponder.models.decoder import Decoder, load


def context(tokens: list[int], **other: int) -> Context:
    return Context(request=1, tokens=tokens, num_prompt=3, room=8, max_depth=4, sampling=Sampling(temperature=0.0), **other)


def runner(decoder: Decoder) -> TwinRunner:
    return TwinRunner(decoder, lambda pool: Attention(decoder.config, pool, is_native=False))


def test_a_place_of_several_tokens_is_the_sum_of_their_embeddings():
    """Against a model that has that very sum as the embedding of a token of its own."""
    checkpoint, _ = tiny("llama", is_tied=False)
    state = dict(checkpoint.state)
    embed = next(name for name in state if "embed" in name)
    state[embed] = state[embed].clone()
    state[embed][VOCAB - 1] = 0.3 * state[embed][97] + 0.7 * state[embed][98]
    decoder = load(StateCheckpoint(checkpoint.config, state), Float32(), None, torch.float32)
    tokens = list(range(60, 80))
    with torch.inference_mode():
        (mixed,) = runner(decoder).likely([context(tokens)], [[((97, 0.3), (98, 0.7)), ((65, 1.0),)]], 9)
        (named,) = runner(decoder).likely([context([*tokens, VOCAB - 1, 65])], [[]], 9)
        (other,) = runner(decoder).likely([context(tokens)], [[((97, 0.7), (98, 0.3)), ((65, 1.0),)]], 9)
    assert [t for t, _ in mixed] == [t for t, _ in named]
    assert max(abs(a - b) for (_, a), (_, b) in zip(mixed, named)) < 1e-5
    assert max(abs(a - b) for (_, a), (_, b) in zip(other, named)) > 1e-3


@pytest.mark.parametrize("skips", [LayerSkip(least=0.0, num=3, ends=1), DraftModel(least=0.0, num=3)])
def test_one_path_without_ngrams_is_the_greedy_chain(skips):
    """The same tokens as the drafter that draws one chain, round by round: as many drafted, as many accepted."""
    alone = Superposed(paths=1, share=0.0, num=3, least=0.0, ends=1, weights=None if isinstance(skips, LayerSkip) else "x")
    greedy = [replace(ask, sampling=GREEDY) for ask in free_asks()[:4] if isinstance(ask, Extend)]
    chains, superposed = opened(skips), opened(alone)
    assert told(superposed, greedy) == told(chains, greedy)
    assert superposed.totals.drafted_tokens == chains.totals.drafted_tokens > 20
    assert superposed.totals.accepted_tokens == chains.totals.accepted_tokens


@pytest.mark.parametrize("drafter", [Superposed(ends=1, least=0.0), Superposed(weights="x", least=0.0, paths=4, num=3)])
def test_answers_are_plain_decodings(drafter):
    wanted = told(opened(None), free_asks())
    process = opened(drafter)
    assert told(process, free_asks()) == wanted
    assert process.totals.accepted_tokens > 10
    runner = process.rounds.drafting.runner
    assert not process.rounds.drafting.seen and not getattr(runner, "readings", None)


def test_more_paths_accept_more():
    """Of the target as its own twin, sampled: the first path alone would miss what is not likeliest."""
    asks = [Extend(prefix=Prefix(chat(text, max_tokens=30)), seed=seed) for seed, text in enumerate(("abab", "xyz", "hello"))]
    found = []
    for paths in (1, 4):
        process = opened(Superposed(weights="x", paths=paths, num=1, share=0.0, least=0.0))
        told(process, asks)
        found.append(process.totals.accepted_tokens)
    assert found[1] > found[0]


def test_rejection_takes_what_was_not_drawn():
    assert len(told(opened(Superposed(ends=1, least=0.0), acceptor=Rejection()), free_asks()[:3])) == 3


def test_ngrams_by_hand():
    """After 'a b' came c twice and d once; after 'b' the same and e once more; 'z' was never seen."""
    counts = Counts(len(ORDERS) + 1, 1000)
    a, b, c, d, e, z = range(6)
    counts.read([a, b, c, a, b, d, a, b, c, e, b, e], 0)
    two, three = ORDERS[0], ORDERS[1]
    wanted = FLOOR + (1 - FLOOR) * (two * 2 / 4 + three * 2 / 3) / (two + three)
    assert ngram(counts, [9, a, b], c) == pytest.approx(wanted)
    assert ngram(counts, [9, a, b], z) == FLOOR == ngram(counts, [z], a)


def test_paths_become_a_blur_and_a_tree():
    paths = [Path((1, 2), math.log(0.6), (0.5, 0.4)), Path((1, 3), math.log(0.3), (0.5, 0.3)), Path((4, 2), math.log(0.1), (0.1, 0.4))]
    assert dict(blur_of(paths)) == pytest.approx({2: 0.7, 3: 0.3})
    tree = tree_of(paths)
    assert tree.tokens == (1, 2, 3, 4, 2) and tree.parents == (ROOT, 0, 0, ROOT, 3)
    assert tree.chances == (0.5, 0.4, 0.3, 0.1, 0.4)


@pytest.mark.parametrize("wrong", [{"paths": 0}, {"num": 0}, {"share": 1.5}, {"least": -1}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(BadField, match="superposed"):
        Superposed(**wrong)
