"""Dictionaries of states: pursuit is exact where it must be, turning changes nothing, unlike models are unlike."""

import itertools

import pytest
import torch

from ponder.core.errors import BadField
from ponder.train.itda import Dictionary, build, pursue, rebuild, similarity, unexplained


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sparse_states(seed, num=300, width=24, num_causes=40, active=2):
    """States that are sums of 2 of 40 causes, and a little noise: what a dictionary should find."""
    causes = torch.nn.functional.normalize(drawn(seed, num_causes, width), dim=1)
    draws = torch.Generator().manual_seed(seed + 1)
    which = torch.stack([torch.randperm(num_causes, generator=draws)[:active] for _ in range(num)])
    return (causes[which] * (1 + torch.rand(num, active, 1, generator=draws, dtype=torch.float64))).sum(1) + 0.01 * drawn(seed + 2, num, width)


def test_orthogonal_atoms_are_found_exactly():
    atoms = torch.linalg.qr(drawn(0, 12, 12)).Q
    states = 3 * atoms[[4, 7]] - 2 * atoms[[1, 2]] + atoms[[0, 11]]
    index, weight, residual = pursue(states, atoms, 3)
    assert index.tolist() == [[4, 1, 0], [7, 2, 11]]
    assert torch.allclose(weight, torch.tensor([[3.0, -2.0, 1.0]] * 2, dtype=torch.float64))
    assert float(residual.norm()) < 1e-12 and torch.allclose(rebuild(atoms, index, weight), states)


def test_a_residual_never_grows_and_is_what_is_missing():
    states, atoms = drawn(1, 50, 16), torch.nn.functional.normalize(drawn(2, 30, 16), dim=1)
    left = [pursue(states, atoms, num)[2].norm(dim=1) for num in (1, 2, 4, 8, 16)]
    assert all(bool((b <= a + 1e-12).all()) for a, b in itertools.pairwise(left))
    index, weight, residual = pursue(states, atoms, 5)
    assert torch.allclose(rebuild(atoms, index, weight) + residual, states)


def test_every_state_is_explained_as_asked_and_atoms_are_needed():
    states = sparse_states(3)
    found = build(states, range(len(states)), num=4, error=0.2)
    lengths = states.square().sum(1)
    assert 10 < len(found.names) < len(states)
    late = [i for i in range(len(states)) if i > max(found.names)]
    assert bool((pursue(states, found.atoms_MD, 4)[2].square().sum(1)[late] <= 0.2 * lengths[late] + 1e-9).all())
    assert torch.allclose(found.atoms_MD, states[list(found.names)] / lengths[list(found.names), None].sqrt())


def test_atoms_that_were_seen_explain_more_than_random_ones():
    old, new = sparse_states(3, num=600).split(300)
    found = build(old, range(300), num=4, error=0.1)
    noise = Dictionary(torch.nn.functional.normalize(drawn(9, *found.atoms_MD.shape), dim=1), found.names)
    assert unexplained(new, found, num=4) < 0.6 * unexplained(new, noise, num=4) < 1


def test_a_turned_model_is_the_same_and_another_is_not():
    states = sparse_states(5)
    turn = torch.linalg.qr(drawn(6, 24, 24)).Q
    one, turned = (build(x, range(300), num=3, error=0.15) for x in (states, 2.5 * states @ turn))
    other = build(drawn(8, 300, 32), range(300), num=3, error=0.8)
    assert similarity(one, one) == similarity(one, turned) == 1.0
    assert similarity(one, other) == similarity(other, one) < 0.8
    empty = Dictionary(torch.zeros(0, 4), ())
    assert similarity(one, empty) == 0.0 and similarity(empty, empty) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: build(torch.zeros(2, 3), "a", num=1, error=0.1),
        lambda: build(torch.zeros(1, 3), "a", num=1, error=1.0),
        lambda: pursue(torch.zeros(1, 3), torch.zeros(0, 3), 1),
        lambda: pursue(torch.zeros(1, 3), torch.zeros(2, 3), 0),
    ],
    ids=range(4),
)
def test_nonsense_is_refused(call):
    with pytest.raises(BadField):
        call()


def test_states_without_length_and_a_full_dictionary():
    states = torch.cat([torch.zeros(1, 4), torch.eye(4)])
    assert build(states, "zabcd", num=1, error=0.5).names == tuple("abcd")
    assert build(states, "zabcd", num=1, error=0.5, max_atoms=2).names == tuple("ab")
