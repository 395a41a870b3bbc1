"""Trees of guessed tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.draft import EMPTY, ROOT, Tree, branches, chain, is_path
from ponder.core.errors import BadField

PATHS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=5)


def spelt(tree: Tree, i: int) -> tuple[int, ...]:
    return tuple(tree.tokens[j] for j in tree.path(i))


@pytest.mark.parametrize(
    ("tokens", "parents", "log_q", "chances"),
    [
        ((1, 2), (ROOT,), None, None),
        ((1, 2), (ROOT, 1), None, None),
        ((1, 2), (ROOT, -2), None, None),
        ((-1,), (ROOT,), None, None),
        ((1,), (ROOT,), torch.zeros(2, 5), None),
        ((1,), (ROOT,), torch.zeros(5), None),
        ((1,), (ROOT,), None, (1.5,)),
        ((1,), (ROOT,), None, ()),
    ],
)
def test_what_is_no_tree_is_refused(tokens, parents, log_q, chances):
    with pytest.raises(BadField, match="tree"):
        Tree(tokens, parents, log_q, chances)


@given(PATHS)
def test_branches_hold_every_path_once(paths):
    tree = branches(paths)
    spellings = [spelt(tree, i) for i in range(len(tree))]
    assert len(set(spellings)) == len(spellings)
    assert set(spellings) == {tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}
    assert tree.depth == max(map(len, paths), default=0)
    assert [len(s) for s in spellings] == list(tree.depths)
    for i in range(len(tree)):
        assert is_path(tree, tree.path(i))
        assert tree.ancestors(i) == tree.path(tree.parents[i])
        assert i in tree.children[tree.parents[i]]


@given(PATHS, st.integers(0, 12), st.integers(0, 3))
def test_parts_of_a_tree_are_trees_of_the_same_paths(paths, num, banned):
    tree = branches(paths)
    part = tree.first(num)
    assert [spelt(part, i) for i in range(len(part))] == [spelt(tree, i) for i in range(min(num, len(tree)))]
    pruned = tree.pruned(lambda i: tree.tokens[i] != banned)
    assert [spelt(pruned, i) for i in range(len(pruned))] == [s for s in (spelt(tree, i) for i in range(len(tree))) if banned not in s]


def test_parts_keep_their_distributions():
    tree = Tree((1, 2, 3), (ROOT, ROOT, 1), torch.eye(3), (0.1, 0.2, 0.3))
    part = tree.pruned(lambda i: i != 0)
    assert part.parents == (ROOT, 0) and part.chances == (0.2, 0.3) and torch.equal(part.log_q, torch.eye(3)[1:])
    assert tree.first(1).chances == (0.1,) and torch.equal(tree.first(1).log_q, torch.eye(3)[:1])


def test_a_chain_has_one_path():
    tree = chain([5, 6, 7])
    assert tree.is_chain and tree.path(2) == (0, 1, 2) and tree.depth == 3 and not is_path(tree, (1,))
    assert EMPTY.is_chain and EMPTY.depth == 0 and is_path(EMPTY, ()) and not is_path(EMPTY, (0,))
