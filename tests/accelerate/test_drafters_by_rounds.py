"""Drafters x laws, slow references, and drafters that must fail."""

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.accelerate.draft import products
from ponder.accelerate.draft.copyspec import CopySpec
from ponder.accelerate.draft.first import First
from ponder.accelerate.draft.heads import Heads, load_heads, save_heads
from ponder.accelerate.draft.medusa import Medusa
from ponder.accelerate.draft.stretches import Counts
from ponder.accelerate.draft.token_recycling import TokenRecycling
from ponder.accelerate.draft.trie import Trie
from ponder.catalogue import ACCEPTORS, speculation
from ponder.core.draft import ROOT, Accepted, Context, Needs, Tree, Verified, chain
from ponder.core.errors import BadField, StoreError
from ponder.core.guarantee import Guarantee
from ponder.testing import laws_rounds as laws
from ponder.testing.laws_rounds import DIM, HOST, LAWS, VOCAB, played, require_fits, script

DRAWS = torch.Generator().manual_seed(3)
HEADS = Heads(
    model_id="scripted", residual=torch.randn(3, DIM, 2 * DIM, generator=DRAWS).bfloat16(), rows=torch.randn(VOCAB, DIM, generator=DRAWS).bfloat16(),
    ids=torch.arange(VOCAB), facts={},
)  # fmt: skip
TEXT = script(0, 77).tokens
DRAFTERS = {
    "copyspec": CopySpec(suffix=2),
    "trie": Trie(),
    "trie, session": Trie(over="session"),
    "trie, corpus": Trie(over="corpus", corpus=(TEXT, TEXT[::-1])),
    "trie, few nodes": Trie(suffix=2, length=3, max_nodes=40),
    "token_recycling": TokenRecycling(),
    "token_recycling, session": TokenRecycling(over="session"),
    "token_recycling, shared rows": TokenRecycling(rows=5, pairs=3),
    "token_recycling, as in the paper": TokenRecycling(pairs=0, reads_prompt=False),
    "medusa": Medusa(heads=HEADS),
    "copyspec, medusa": First(drafters=(CopySpec(), Medusa(heads=HEADS))),
    "copyspec, token_recycling": First(drafters=(CopySpec(), TokenRecycling(over="session"))),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", DRAFTERS)
def test_law(name, law):
    law(DRAFTERS[name])


CONTEXTS = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 6))


@pytest.mark.parametrize("name", DRAFTERS)
@given(drawn=CONTEXTS)
@settings(max_examples=40, deadline=None)
def test_drafts_fit_any_context(name, drawn):
    """Also where the text is one token over and over, and in one drafting that has seen other texts."""
    drafter, (tokens, room, max_depth) = DRAFTERS[name], drawn
    drafting = drafter.open(HOST)
    drafting.observe([laws.verified(drafter, 1, tokens[-1], tokens[-1:])])
    for request in (1, 2):
        context = Context(request=request, tokens=tokens, num_prompt=1, room=room, max_depth=max_depth)
        for tree in drafting.propose([context, context]):
            require_fits(tree, context)


EXACT = {name: acceptor for name, acceptor in ACCEPTORS.items() if acceptor.guarantee is Guarantee.EXACT}


def of_last(text):
    """A model of three tokens among those that the vocabulary has: what comes depends on the last one; what follows 2 is certain."""
    return ((0.1, 0.6, 0.3), (0.2, 0.1, 0.7), (1.0, 0.0, 0.0), (0.3, 0.4, 0.3))[min(text[-1], 3) if text else 3] + (0.0,) * (VOCAB - 3)


@pytest.mark.parametrize("acceptor", EXACT)
@pytest.mark.parametrize("name", [name for name in DRAFTERS if name not in ("medusa", "trie, few nodes", "trie, corpus")])
def test_no_drafter_changes_an_answer(name, acceptor):
    """The pair matrix, by enumeration of whole texts; greedy's has one path, so it may be longer."""
    is_greedy = acceptor == "greedy"
    laws.law_changes_no_answer(DRAFTERS[name], EXACT[acceptor], laws.Play(model=of_last, is_greedy=is_greedy, num=9 if is_greedy else 4))


@dataclass(frozen=True)
class TakesAll:
    """An acceptor that believes the drafter, which no law of drafters could excuse."""

    guarantee = Guarantee.EXACT
    reads = "log_p"

    def accept(self, tree, target, rng):
        path = tree.path(len(tree) - 1) if tree else ()
        return Accepted(path, int(rng.categorical(target.log_p(path[-1] + 1 if path else 0)[None])[0]))


def test_an_acceptor_that_takes_all_fails():
    with pytest.raises(AssertionError, match="differ by"):
        laws.law_changes_no_answer(CopySpec(suffix=2), TakesAll(), laws.Play(model=of_last))


def test_drafts_that_nobody_accepts_show_nothing():
    with pytest.raises(AssertionError, match="shows nothing"):
        laws.law_changes_no_answer(Wrong(lambda c, n: chain([5])), EXACT["rejection"], laws.Play(model=of_last))


def test_something_is_drafted_and_accepted():
    """The laws would hold of a drafter that never guesses."""
    for name, drafter in DRAFTERS.items():
        text = script(1, 1)
        trees = played(drafter, drafter.open(HOST), [text])[1]
        assert any(trees), name
        if name != "medusa":  # its weights are random
            assert len(trees) < len(text.tokens) - text.num_prompt - 1, f"{name}: nothing was ever accepted"


# ---- drafters that must fail


@dataclass(frozen=True)
class Leaky:
    """Says "request", and keeps one table for all."""

    keeps: str = "one table"
    guarantee = Guarantee.EXACT
    scope = "request"
    needs = Needs(num_top=8)

    def open(self, host):
        return LeakyDrafting(TokenRecycling(over="session").open(host))


@dataclass
class LeakyDrafting:
    inner: object

    def propose(self, contexts):
        return self.inner.propose(contexts)

    def observe(self, verified):
        self.inner.observe(verified)

    def forget(self, request):
        pass


@dataclass(frozen=True)
class Wrong:
    """One draft for all contexts, made by `make`."""

    make: object
    guarantee = Guarantee.EXACT
    scope: str = "request"
    needs = Needs()

    def open(self, host):
        return WrongDrafting(self.make)


@dataclass
class WrongDrafting:
    make: object
    num_asked: list = field(default_factory=list)

    def propose(self, contexts):
        self.num_asked.append(len(contexts))
        return [self.make(context, len(self.num_asked)) for context in contexts]

    def observe(self, verified):
        pass

    def forget(self, request):
        pass


MUTANTS = {
    "one table for all": (Leaky(), laws.law_requests_stand_alone),
    "keeps the dead": (Leaky(), laws.law_forgets),
    "ignores the room": (Wrong(lambda c, n: chain([1] * (c.room + 1))), laws.law_drafts_fit),
    "ignores the depth": (Wrong(lambda c, n: chain([1] * c.room)), laws.law_drafts_fit),
    "guesses twice": (Wrong(lambda c, n: Tree((1, 1), (ROOT, ROOT)) if c.room > 1 else chain([1])), laws.law_drafts_fit),
    "another model's tokens": (Wrong(lambda c, n: chain([VOCAB])), laws.law_drafts_fit),
    "least likely first": (Wrong(lambda c, n: chain(range(c.room, 0, -1)).first(c.max_depth)), laws.law_less_room_cuts_the_end),
    "counts its calls": (Wrong(lambda c, n: chain([n % VOCAB])), laws.law_requests_stand_alone),
    "learns nothing": (Wrong(lambda c, n: chain([1]), "session"), laws.law_learns_what_it_says),
    "draws": (Wrong(lambda c, n: chain([random.SystemRandom().randrange(VOCAB)])), laws.law_is_repeatable),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_drafters_fail(name):
    drafter, law = MUTANTS[name]
    with pytest.raises(AssertionError):
        law(drafter)


# ---- slow references


def first_copy(tokens, suffix, num):
    """By looking through the whole text; a copy that runs over the end goes on with itself."""
    for end in range(suffix, len(tokens)):
        if tokens[end - suffix : end] == tokens[-suffix:]:
            grown = list(tokens)
            for i in range(num):
                grown.append(grown[end + i])
            return tuple(grown[len(tokens) :])
    return ()


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=30), suffix=st.integers(1, 4), cut=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_copyspec_is_the_first_match(tokens, suffix, cut):
    """Asked at once and asked twice while the text grew."""
    drafting = CopySpec(suffix=suffix, num_copied=5).open(HOST)
    for part in (tokens[: min(cut, len(tokens) - 1)] or tokens[:1], tokens):
        (tree,) = drafting.propose([Context(request=1, tokens=part, num_prompt=1, room=9, max_depth=9)])
        assert tree.tokens == first_copy(part, suffix, 5) and tree.is_chain


def counted(tokens, depth):
    return Counter(tuple(tokens[i:j]) for j in range(len(tokens) + 1) for i in range(max(0, j - depth), j))


@given(tokens=st.lists(st.integers(0, 2), max_size=30), depth=st.integers(1, 6), cut=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_all_stretches(tokens, depth, cut):
    counts = Counts(depth, 1 << 20)
    counts.read(tokens[:cut], 0)
    counts.read(tokens, min(cut, len(tokens)))
    found = {}
    left = [((), counts.root)]
    while left:
        path, node = left.pop()
        left += [((*path, token), child) for token, child in node.next.items()]
        found |= {path: node.count} if path else {}
    assert found == counted(tokens, depth) and counts.num_nodes == len(found)


@given(tokens=st.lists(st.integers(0, 5), max_size=200), max_nodes=st.integers(6, 60))
@settings(max_examples=60, deadline=None)
def test_counts_never_exceed_their_nodes(tokens, max_nodes):
    counts, depth = Counts(5, max_nodes), 5
    for at in range(len(tokens)):
        counts.read(tokens[: at + 1], at)
        assert counts.num_nodes <= max_nodes
    left, num = [((), counts.root)], -1
    full = counted(tokens, depth)
    while left:
        path, node = left.pop()
        num += 1
        left += [((*path, token), child) for token, child in node.next.items()]
        assert not path or 0 < node.count <= full[path]
    assert num == counts.num_nodes


def path_chances(tokens, suffix, length):
    """Probability of every path that the trie may draft, from counts of the whole text: {path: product of chances}."""
    full, found, left, begun = counted(tokens, suffix + length), {}, 1.0, set()
    for num in range(min(suffix, len(tokens)), 0, -1):
        stretch = tuple(tokens[-num:])
        starts = {x for (*s, x) in full if tuple(s) == stretch} - begun
        total = sum(n for s, n in full.items() if s[:-1] == stretch)
        open_paths = [((x,), left * full[(*stretch, x)] / (total + 2 * num**-1.5)) for x in sorted(starts)]
        while open_paths:
            path, chance = open_paths.pop()
            found[path] = chance
            after = {s: n for s, n in full.items() if s[:-1] == (*stretch, *path)}
            if len(path) < length:
                m = num + len(path)
                open_paths += [((*path, s[-1]), chance * n / (sum(after.values()) + 2 * m**-1.5)) for s, n in after.items()]
        begun |= starts
        left *= 2 * num**-1.5 / (total + 2 * num**-1.5)
    return found


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=25), room=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_trie_drafts_the_likeliest_paths(tokens, room):
    """Against probabilities of all paths from a table of all stretches."""
    (tree,) = Trie(suffix=3, length=3).open(HOST).propose([Context(request=1, tokens=tokens, num_prompt=1, room=room, max_depth=9)])
    wanted = path_chances(tokens, 3, 3)
    found = {tuple(tree.tokens[j] for j in tree.path(i)): math.prod(tree.chances[j] for j in tree.path(i)) for i in range(len(tree))}
    assert len(found) == min(room, len(wanted))
    assert all(wanted[path] == pytest.approx(chance, rel=1e-9) for path, chance in found.items())
    assert sorted(found.values()) == pytest.approx(sorted(wanted.values())[-len(found) :], rel=1e-9)


def test_what_a_tree_holds_of_each_level_sums_to_at_most_one():
    (tree,) = Trie().open(HOST).propose([Context(request=1, tokens=list(TEXT), num_prompt=1, room=16, max_depth=8)])
    assert all(sum(tree.chances[i] for i in children) <= 1 for children in tree.children.values())


@given(tokens=st.lists(st.integers(0, 11), min_size=1, max_size=6), room=st.integers(1, 30), max_depth=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_recycling_follows_its_table(tokens, room, max_depth):
    """Every token of a draft is among what was likely after its parent; each guess has a likelier or equal one before it."""
    drafter = TokenRecycling(num_tokens=30)
    drafting = drafter.open(HOST)
    for token in tokens:
        drafting.propose([Context(request=1, tokens=[token], num_prompt=1, room=1, max_depth=1)])
        drafting.observe([laws.verified(drafter, 1, token, (token,))])
    (tree,) = drafting.propose([Context(request=1, tokens=[tokens[-1]], num_prompt=1, room=room, max_depth=max_depth)])
    assert tree
    for i, token in enumerate(tree.tokens):
        above = tokens[-1] if tree.parents[i] == ROOT else tree.tokens[tree.parents[i]]
        assert above in tokens and token in laws.likeliest_after(above)[:8]
    paths = [math.prod(tree.chances[j] for j in tree.path(i)) for i in range(len(tree))]
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(paths))


@pytest.mark.parametrize("pairs", (0, 5, 5000))
def test_recycling_drafts_the_likeliest_paths(pairs):
    """Against all paths of a table written by hand: rows of pairs where the pair was read, rows of tokens elsewhere."""
    shares, pair_shares = TokenRecycling().shares, TokenRecycling().pair_shares
    drafter, text = TokenRecycling(num_tokens=40, pairs=pairs, reads_prompt=False), script(3, 8).tokens
    drafting, rows, twos = drafter.open(HOST), {}, {}
    for before, token in itertools.pairwise(text[:30]):
        drafting.propose([Context(request=1, tokens=[before, token], num_prompt=1, room=1, max_depth=1)])
        order = sorted(range(VOCAB), key=lambda other: laws.hash_seed("after", before, token, other))[:8]
        drafting.observe([laws.verified(drafter, 1, token, (0,), orders=[order])])
        rows[token] = twos[before, token] = order
    end = text[28:30]
    (tree,) = drafting.propose([Context(request=1, tokens=list(end), num_prompt=1, room=40, max_depth=3)])
    known = {pair for pair in twos if pairs and drafting.tables[1].after(*pair)[1]}
    assert (known == set(twos)) == (pairs == 5000) and (known == set()) == (pairs == 0)
    everything, left = [], [(end, 1.0, 1)]
    while left:
        (before, token), reach, depth = left.pop()
        is_pair = (before, token) in known
        for follower, share in zip(twos[before, token] if is_pair else rows.get(token, ()), pair_shares if is_pair else shares):
            everything.append(reach * share)
            left += [((token, follower), reach * share, depth + 1)] if depth < 3 else []
    found = [math.prod(tree.chances[j] for j in tree.path(i)) for i in range(len(tree))]
    assert found == pytest.approx(sorted(everything, reverse=True)[:40])


def test_recycling_copies_what_a_prompt_says():
    """Once through the prompt, behind the pair that was last; without pairs or without reading it there is nothing, or another thing."""
    prompt = [1, 2, 3, 4, 5, 2, 9, 3, 7, 1]

    def drafted(**changes):
        drafter = TokenRecycling(num_tokens=4, **changes)
        return drafter.open(HOST).propose([Context(request=1, tokens=[*prompt, 2], num_prompt=10, room=4, max_depth=4)])[0]

    tree = drafted()
    assert [tree.tokens[i] for i in tree.path(2)] == [3, 4, 5]  # behind (1, 2), not behind (5, 2)
    assert drafted(pairs=0).tokens[0] == 9 and not len(drafted(reads_prompt=False))


def test_the_table_is_small():
    drafting = TokenRecycling(over="session").open(replace(HOST, vocab_size=50_000))
    played(TokenRecycling(over="session"), drafting, [script(i, i) for i in range(3)])
    assert sum(t.nbytes for t in drafting.tables.values()) == 50_000 * 9 * 4 + 5000 * 40 <= 2e6


# ---- heads


def test_heads_are_plain_products(monkeypatch):
    monkeypatch.setattr(products, "library", lambda: None)  # no 8 bits
    heads = replace(HEADS)
    hidden, drawn = torch.randn(5, DIM, generator=DRAWS), [3, 0, 11, 3, 99]
    whole = heads.log_p(hidden, drawn)
    assert whole.shape == (5, 3, VOCAB)
    for n in range(5):
        for k in range(3):
            h, r, e = hidden[n], HEADS.residual[k].float(), HEADS.rows[drawn[n]].float() if drawn[n] < VOCAB else torch.zeros(DIM)
            size = h.square().mean().sqrt()
            inner = r @ torch.cat([h / size, e / e.square().mean().sqrt().clamp_min(1e-6)])
            wanted = (HEADS.rows.float() @ (h + size * inner / (1 + (-inner).exp()))).log_softmax(-1)
            assert torch.allclose(whole[n, k], wanted, atol=1e-3)
    assert not torch.allclose(whole, heads.log_p(hidden, [4] * 5), atol=0.2)  # the drawn token is read


def test_medusa_drafts_the_likeliest_combinations():
    drafter = Medusa(heads=HEADS, branches=VOCAB)
    drafting = drafter.open(HOST)
    state = torch.randn(DIM, generator=DRAWS)
    drafting.observe([Verified(request=1, tree=chain(()), path=(), tokens=(1,), hidden=state[None])])
    (tree,) = drafting.propose([Context(request=1, tokens=[1], num_prompt=1, room=16, max_depth=3)])
    p = HEADS.log_p(state[None], [1])[0].double().exp()
    everything = torch.cat([p[0], (p[0][:, None] * p[1]).flatten(), (p[0][:, None, None] * p[1][:, None] * p[2]).flatten()])
    found = [math.prod(tree.chances[j] for j in tree.path(i)) for i in range(len(tree))]
    assert found == pytest.approx(everything.sort(descending=True).values[:16].tolist(), rel=1e-5)


def test_heads_come_back_from_their_file(tmp_path):
    save_heads(HEADS, tmp_path / "heads.safetensors")
    back = load_heads(tmp_path / "heads.safetensors")
    assert all(torch.equal(getattr(back, name), getattr(HEADS, name)) for name in ("residual", "rows", "ids")) and back.model_id == "scripted"
    (tmp_path / "text").write_text("no heads")
    with pytest.raises(BadField, match="safetensors"):
        load_heads(tmp_path / "text")
    with pytest.raises(StoreError, match="train-heads"):
        load_heads(tmp_path / "nothing")
    save_heads(Heads(model_id="x", residual=torch.ones(1, 2, 3), rows=torch.ones(4, 3), ids=torch.arange(4), facts={}), tmp_path / "odd")
    with pytest.raises(BadField, match="damaged"):
        load_heads(tmp_path / "odd")


def test_heads_of_another_model_are_refused():
    wide = Heads(model_id="wide", residual=torch.ones(1, 9, 18), rows=torch.ones(VOCAB, 9), ids=torch.arange(VOCAB), facts={})
    with pytest.raises(BadField, match="width 9"):
        Medusa(heads=wide).open(HOST)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CopySpec(suffix=0), "suffix=0"),
        (lambda: Trie(over="corpus"), "corpus of 0"),
        (lambda: Trie(corpus=((1,),)), "over='corpus'"),
        (lambda: Trie(max_nodes=3), "max_nodes"),
        (lambda: Trie(weight=0), "weight=0"),
        (lambda: TokenRecycling(over="corpus"), "request or session"),
        (lambda: TokenRecycling(shares=(0.5,)), "8 chances"),
        (lambda: TokenRecycling(rows=0), "rows=0"),
        (lambda: Medusa(heads=HEADS, branches=99), "branches=99"),
        (lambda: First(drafters=(CopySpec(),)), "at least 2"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(BadField, match=words):
        make()


def test_the_widest_scope_is_said():
    assert First(drafters=(CopySpec(), Trie(over="session"))).scope == "session"
    assert First(drafters=(CopySpec(), Trie(over="corpus", corpus=((1, 2),)))).scope == "corpus"
    assert First(drafters=(TokenRecycling(), Medusa(heads=HEADS))).needs == Needs(num_top=8, hidden=True)


def test_heads_are_named_by_their_file(tmp_path):
    """Slashes of a path are no separators."""
    save_heads(HEADS, tmp_path / "heads.safetensors")
    found = speculation(f"{tmp_path}/heads.safetensors/greedy/fixed:num=3")
    assert torch.equal(found.drafter.heads.rows, HEADS.rows) and found.control.num == 3
    assert speculation(f"{tmp_path}/heads.safetensors").acceptor == ACCEPTORS["coupled"]
    assert speculation("trie:over=session,num_tokens=5").drafter == Trie(over="session", num_tokens=5)
