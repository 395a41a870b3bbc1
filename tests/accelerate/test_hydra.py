"""Heads that read their own guesses: laws of drafters, plain products, the likeliest tree, files."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from ponder.accelerate.draft import products
from ponder.accelerate.draft.followers import Followers, load_followers, save_followers
from ponder.accelerate.draft.hydra import Hydra
from ponder.accelerate.draft.hydra_heads import HydraHeads, load_hydra, save_hydra, size_of, stepped
from ponder.catalogue import speculation
from ponder.core.draft import EMPTY, Context, Verified
from ponder.core.errors import BadField
from ponder.testing.laws_rounds import DIM, HOST, LAWS, VOCAB

DRAWS = torch.Generator().manual_seed(5)
INNER = 7


def heads(num=3, cells=2, scored=VOCAB):
    inner = torch.randn(cells, 2 * INNER + DIM, 2 * DIM, generator=DRAWS).bfloat16()
    outer = torch.randn(cells, DIM, INNER, generator=DRAWS).bfloat16()
    ids = torch.randperm(VOCAB, generator=DRAWS)
    return HydraHeads(model_id="scripted", num=num, num_scored=scored, inner=inner, outer=outer, ids=ids, facts={})


HEADS = heads()
DRAFTERS = {"hydra": Hydra(heads=HEADS), "wide": Hydra(heads=HEADS, width=40, branches=3), "few scored": Hydra(heads=heads(5, 1, 4), branches=4)}


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", DRAFTERS)
def test_law(name, law):
    law(DRAFTERS[name])


def by_hand(made, h, tokens):
    """float64 [S]: chances of what follows x_1 .. x_k, by the equation of the card."""
    rows = HOST.logits(torch.eye(DIM)).T[made.ids].double()
    size = h.double().square().mean().sqrt()
    u = h.double() / size
    for k, token in enumerate(tokens):
        e = rows[made.place[token]]
        z = torch.cat([u, e / e.square().mean().sqrt().clamp_min(1e-6)])
        inner, outer = made.inner[min(k, len(made.inner) - 1)].double(), made.outer[min(k, len(made.outer) - 1)].double()
        g, v, straight = inner[:INNER] @ z, inner[INNER : 2 * INNER] @ z, inner[2 * INNER :] @ z
        u = straight + outer @ (g / (1 + (-g).exp()) * v)
    return (rows[: made.num_scored] @ (size * u)).softmax(-1)


def drafted(drafter, h, newest, *, room=16, max_depth=8):
    drafting = drafter.open(HOST)
    drafting.observe([Verified(request=1, tree=EMPTY, path=(), tokens=(newest,), hidden=h[None])])
    return drafting.propose([Context(request=1, tokens=[newest], num_prompt=1, room=room, max_depth=max_depth)])[0]


@pytest.fixture
def plain_products(monkeypatch):
    """No 8 bits: what is drafted must then be the equation's to rounding."""
    monkeypatch.setattr(products, "library", lambda: None)


def test_the_tree_is_the_likeliest(plain_products):
    """With every branch followed: the paths of largest chance among all, with those chances."""
    for num, cells in ((3, 2), (2, 1), (4, 4)):
        made, h = heads(num, cells), torch.randn(DIM, generator=DRAWS)
        tree = drafted(Hydra(heads=made, num_tokens=24, branches=VOCAB, width=10_000), h, 3, room=24)
        everything = []
        for depth in range(1, num + 1):
            for path in itertools.product(range(VOCAB), repeat=depth) if depth < 4 else ():
                chance = 1.0
                for k in range(depth):
                    chance *= float(by_hand(made, h, (3, *path[:k]))[made.place[path[k]]]) if chance > 1e-4 else 0.0
                everything.append(chance)
        found = [math.prod(tree.chances[j] for j in tree.path(i)) for i in range(len(tree))]
        least = min(found)
        assert len(found) == 24 and found == sorted(found, reverse=True)
        for i in range(len(tree)):
            tokens = [tree.tokens[j] for j in tree.path(i)]
            wanted = math.prod(float(by_hand(made, h, (3, *tokens[:k]))[made.place[tokens[k]]]) for k in range(len(tokens)))
            assert found[i] == pytest.approx(wanted, rel=1e-3)
        assert sum(chance > least * 1.001 for chance in everything) < 24


def test_fewer_scored_tokens_are_the_most_frequent():
    h = torch.randn(DIM, generator=DRAWS)
    tree = drafted(Hydra(heads=HEADS, num_tokens=40, branches=4, num_scored=4), h, 3, room=40)
    assert len(tree) == 40 and set(tree.tokens) == set(HEADS.ids[:4].tolist())


def test_a_guess_changes_what_is_guessed_behind_it(plain_products):
    """Unlike heads side by side: chances behind two siblings differ."""
    tree = drafted(Hydra(heads=HEADS, num_tokens=40, branches=VOCAB, width=40), torch.randn(DIM, generator=DRAWS), 2, room=40)
    behind = [[(tree.tokens[i], round(tree.chances[i], 4)) for i in tree.children[at]] for at in tree.children[-1]]
    assert len({tuple(x) for x in behind if x}) > 1


def test_eight_bits_err_little():
    """Where the compiled products are, they are close to plain ones; where not, they are them."""
    weight, x = torch.randn(40, 70, generator=DRAWS), torch.randn(3, 70, generator=DRAWS)
    wanted = x @ weight.T
    assert (products.product(weight)(x) - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_training_runs_the_same_products(plain_products):
    h = torch.randn(2, DIM, generator=DRAWS)
    rows = HOST.logits(torch.eye(DIM)).T[HEADS.ids]
    u = stepped(HEADS.inner[0].float(), HEADS.outer[0].float(), h / size_of(h), rows[[HEADS.place[4]] * 2])
    found = (size_of(h) * u @ rows.T).softmax(-1)
    assert torch.allclose(found[1].double(), by_hand(HEADS, h[1], (4,)), atol=1e-4)


def test_heads_come_back_from_their_file(tmp_path):
    path = tmp_path / "hydra.safetensors"
    save_hydra(HEADS, path)
    back = load_hydra(path)
    assert all(torch.equal(getattr(back, name), getattr(HEADS, name)) for name in ("inner", "outer", "ids"))
    assert (back.num, back.num_scored, back.model_id) == (3, VOCAB, "scripted")
    assert speculation(f"{path}/greedy/fixed:num=3").drafter.heads.num == 3
    for change in ({"ids": -HEADS.ids}, {"outer": HEADS.outer[:1]}, {"num_scored": VOCAB + 1}, {"inner": HEADS.inner * math.nan}):
        save_hydra(dataclasses.replace(HEADS, **change), path)
        with pytest.raises(BadField, match="damaged"):
            load_hydra(path)


def test_heads_of_another_model_are_refused():
    with pytest.raises(BadField, match="width 6"):
        Hydra(heads=HEADS).open(dataclasses.replace(HOST, dim=9))
    for change in ({"branches": 99}, {"num_scored": VOCAB + 1}, {"num_scored": 2, "branches": 3}, {"width": 0}):
        with pytest.raises(BadField, match="hydra num_tokens"):
            Hydra(heads=HEADS, **change)


def test_followers_come_back_from_their_file(tmp_path):
    rows = np.zeros((5, 9), np.int32)
    rows[2, :3] = 3, 1, 5
    table = Followers(model_id="toy", rows=rows, shares=(0.3,) * 8, facts={"num_tokens": 7})
    save_followers(table, tmp_path / "t.safetensors")
    back = load_followers(tmp_path / "t.safetensors")
    assert (back.rows == rows).all() and back.shares == table.shares and back.facts == table.facts
    rows[1, 1] = 99
    save_followers(table, tmp_path / "t.safetensors")
    with pytest.raises(BadField, match="damaged"):
        load_followers(tmp_path / "t.safetensors")


def test_a_warm_table_drafts_from_the_first_token(tmp_path):
    """Its own rows first; what is read later is written over them, for that request alone."""
    rows = np.zeros((VOCAB, 9), np.int32)
    rows[:, 0] = np.arange(VOCAB) + 1
    rows[:, 1] = (np.arange(VOCAB) + 5) % VOCAB + 1  # five further
    save_followers(Followers(model_id="scripted", rows=rows, shares=(0.5, *(0.01,) * 7), facts={}), tmp_path / "t.safetensors")
    drafter = speculation(f"{tmp_path}/t.safetensors").drafter
    drafting = dataclasses.replace(drafter, over="request").open(HOST)

    def chain_of(request, token):
        (tree,) = drafting.propose([Context(request=request, tokens=[token], num_prompt=1, room=3, max_depth=3)])
        return tree.tokens

    assert chain_of(1, 2) == (7, 0, 5)
    drafting.observe([Verified(request=1, tree=EMPTY, path=(), tokens=(4,), top=torch.tensor([[9] * 8]))])
    assert chain_of(1, 2)[0] == 9 and chain_of(2, 2) == (7, 0, 5)
    with pytest.raises(BadField, match="12 rows"):
        drafter.open(dataclasses.replace(HOST, vocab_size=VOCAB + 1))
